"""A build on an emulated arm64 device: over a real sshd, and as a bundle; ``make test-containers`` runs this.

ARM64_ROOT is a root file system made by docker/arm64-root.sh; the build is the folder ARM64_RUN, else that of ``make
build TARGET=x86-cpu``.
"""

import json
import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sieve_edge.artifacts import read_manifest
from sieve_edge.config import Connection, Target
from sieve_edge.device.bundle import write_bundle
from sieve_edge.device.check import TIE_NATS
from sieve_edge.device.place import ThisMachine, open_place
from sieve_edge.files import read_json
from sieve_edge.progress import Progress
from tests.device.conftest import running_sshd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = os.environ.get("ARM64_ROOT")
RUN = os.environ.get("ARM64_RUN")
RUNS = Path(__file__).parents[2] / "runs"
PROMPTS = 20


@pytest.fixture(scope="module")
def root():
    if ROOT is None:
        pytest.skip("ARM64_ROOT is not set; docker/arm64-root.sh makes one")
    return Path(ROOT)


@pytest.fixture(scope="module")
def run():
    if RUN is not None:
        return Path(RUN)
    found = sorted(RUNS.glob("*-x86-cpu/validate/sample.json"))
    if not found:
        pytest.skip("no finished build; run: make build TARGET=x86-cpu")
    return found[0].parent.parent


@pytest.fixture(scope="module")
def target(run):
    return Target.model_validate(read_manifest(run / "validate").settings["target"])


def test_the_same_answers_over_ssh(root, run, target, tmp_path, monkeypatch):
    with running_sshd(tmp_path / "sshd", f"ChrootDirectory {root}\nSetEnv QEMU_CPU=cortex-a72\n") as device:
        connection = Connection(
            **{**device.connection.model_dump(), "workdir": "sieve-edge", "python": "/usr/bin/python3"}
        )
        far = target.model_copy(update={"connection": connection})
        folders = {"pruned": run / "export" / "pruned"}
        job = read_json(run / "validate" / "sample.json")["job"]
        job = {**job, "prompts": job["prompts"][:PROMPTS], "folder": str(folders["pruned"])}
        here_NK = np.asarray(ThisMachine(target).run(job, None)["answers"])
        with open_place(far, tmp_path / "arm64", folders, tmp_path, Progress()) as place:
            facts = place.facts()
            there_NK = np.asarray(place.run(job, None)["answers"])
    assert facts["machine"] == "aarch64" != platform.machine()
    chosen = there_NK.argmax(1)
    behind = here_NK.max(1) - here_NK[np.arange(PROMPTS), chosen]
    assert (behind <= TIE_NATS).all(), behind
    assert np.abs(there_NK - here_NK).max() < TIE_NATS
    assert not list((root / "root").iterdir())


def test_a_bundle_runs_there(root, run, tmp_path):
    archive = tmp_path / "bundle.tar.gz"
    write_bundle(run, archive, "aarch64", tmp_path)
    place = root / "srv" / "bundle"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    with tarfile.open(archive) as packed:
        packed.extractall(place.parent, filter="data")
    chroot = ["chroot", root, "/usr/bin/env", "QEMU_CPU=cortex-a72", "/bin/sh"]
    try:
        for script in ("install.sh", "check.sh"):
            done = subprocess.run([*chroot, f"/srv/bundle/{script}"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["agreement"] >= 0.95
    finally:
        shutil.rmtree(place)

"""The wheel, installed away from the checkout, has all that a build needs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sieve_edge.resolve import shipped_targets, shipped_tasks
from tests.command import ENVIRONMENT, last_json

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "sieve_edge", "targets")
QUICK = ("calibration_tokens=1500", "threads=1", "learn.fisher_prompts=64", "search.strategy=uniform", "tolerance=0.3")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Function that runs the installed command in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    sources, site, empty = folder / "sources", folder / "site", folder / "empty"
    for name in SOURCES:
        if (ROOT / name).is_file():
            sources.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
        else:
            shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip"]
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder / "dist", sources]
    subprocess.run([*pip, *map(str, build)], check=True)
    wheel = next((folder / "dist").glob("sieve_edge-*.whl"))
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    # Only so is it certain that nothing comes from the checkout.
    shutil.rmtree(sources)
    empty.mkdir()
    environment = {**ENVIRONMENT, "PYTHONPATH": os.fspath(site)}

    def run(*words):
        asked = [str(site / "bin" / "sieve-edge"), *map(str, words)]
        return subprocess.run(asked, capture_output=True, text=True, check=False, cwd=empty, env=environment)

    found = subprocess.run(
        [sys.executable, "-c", "import sieve_edge; print(sieve_edge.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=empty,
        env=environment,
    )
    assert Path(found.stdout.strip()).is_relative_to(site)
    return run


def test_it_has_every_target_and_task(installed):
    assert set(json.loads(installed("targets").stdout)) == set(shipped_targets())
    assert set(json.loads(installed("tasks").stdout)) == set(shipped_tasks())
    assert installed("--version").stdout.startswith("sieve-edge ")
    assert last_json(installed("targets", "show", "rpi5"))["name"] == "rpi5"


def test_it_builds_with_report_card_and_bundle(installed, pico, toy_target, tmp_path):
    pico("llama")
    run = tmp_path / "run"
    settings = [word for setting in QUICK for word in ("--set", setting)]
    done = installed("build", "--target", toy_target, "--run-dir", run, *settings)
    # Whether a pico model is faster than the dense one is chance.
    assert done.returncode in (0, 4), done.stderr
    assert last_json(done)["kept_fraction"]["linears"] < 1.0
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")
    assert installed("card", run).returncode == 0
    packed = installed("bundle", run)
    assert packed.returncode == 0, packed.stderr
    assert list(run.glob("*.tar.gz"))

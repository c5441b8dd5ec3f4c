"""One pico build for a device: on this host first, then over a connection, then packed for it."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml

from sieve_edge.files import read_json
from tests.command import ENVIRONMENT, command, last_json
from tests.device.conftest import Device, make_stand_in

SETTINGS = ("calibration_tokens=1500", "threads=1", "learn.fisher_prompts=64", "search.strategy=uniform")


@pytest.fixture(scope="module")
def board(pico, toy_task, toy_target, tmp_path_factory):
    """``(function that builds for a target with these changes, folder of the run)``."""
    folder = tmp_path_factory.mktemp("board")

    def build(*more, verb="build", **changes):
        target = yaml.safe_load(toy_target.read_text()) | {"name": "toy-board"} | changes
        (folder / "target.yaml").write_text(yaml.safe_dump(target))
        words = ["--target", folder / "target.yaml", "--task", toy_task, "--model", pico("llama")]
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        return command(verb, *words, "--run-dir", folder / "runs" / "board", *settings, *more)

    return build, folder / "runs" / "board"


@pytest.fixture(scope="module")
def on_host(board):
    """Finished build without a connection."""
    return board[0](connection=None, limits={"time_per_answer_ms": 1e-6, "file_size_mib": 5.0})


def test_without_a_device_no_time_limit_is_passed(board, on_host):
    assert on_host.returncode == 0, on_host.stderr
    result = last_json(on_host)
    assert result["validated_on"] == "host"
    outcomes = {check["name"]: check["passed"] for check in result["checks"]}
    assert outcomes["time_per_answer_ms"] is outcomes["faster"] is None
    assert outcomes["file_size_mib"] is outcomes["loss_test"] is True
    assert "not verified, since target toy-board has no connection to its device: faster" in on_host.stderr
    again = board[0]("--require-device", connection=None, limits={"time_per_answer_ms": 1e-6, "file_size_mib": 5.0})
    assert again.returncode == 4
    assert "--require-device, but it was measured on this host only" in again.stderr
    assert "validate: up to date" in again.stderr
    for more, code in ((("--require-device",), 4), ((), 0)):
        alone = board[0](
            *more, verb="validate", connection=None, limits={"time_per_answer_ms": 1e-6, "file_size_mib": 5.0}
        )
        assert alone.returncode == code
        assert last_json(alone)["stage"] == "validate"


def test_an_accelerator_is_not_passed_off(board, on_host):
    done = board[0](connection=None, execution_provider="CUDAExecutionProvider")
    assert done.returncode == 0, done.stderr
    result = last_json(done)
    assert result["device"]["providers"] == ["CPUExecutionProvider"]
    assert "in place of CUDAExecutionProvider" in result["fallbacks"][0]
    assert "search: up to date" in done.stderr
    # On the device itself it is an error.
    done = board[0](connection="local", execution_provider="CUDAExecutionProvider")
    assert done.returncode == 5
    assert "CUDAExecutionProvider" in done.stderr


def test_over_a_connection_the_device_decides(board, on_host, tmp_path, monkeypatch):
    make_stand_in(tmp_path)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{tmp_path / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}")
    connection = {"ssh": "me@board", "python": sys.executable}
    done = board[0]("--require-device", connection=connection, limits={"time_per_answer_ms": 1e-6})
    assert done.returncode == 4
    assert "time_per_answer_ms" in done.stderr
    assert "export: up to date" in done.stderr
    result = last_json(done)
    assert result["validated_on"] == "device"
    assert result["accuracy"] == last_json(on_host)["accuracy"]
    assert Device(tmp_path, None).requests("remove")
    assert not list((tmp_path / "home").iterdir())


def unpack(archive, folder):
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return next(folder.iterdir())


def check(bundle):
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([bundle / "check.sh"], env=environment, capture_output=True, text=True, check=False)


def test_a_bundle_runs_outside_and_notices_what_changed(board, on_host, tmp_path):
    run = board[1]
    board[0](connection=None, limits={"time_per_answer_ms": 1e-6, "file_size_mib": 5.0})
    done = command("bundle", run, "--out", tmp_path / "mine.tar.gz")
    assert done.returncode == 0, done.stderr
    bundle = unpack(tmp_path / "mine.tar.gz", tmp_path / "there")
    assert {"artifact", "runner", "install.sh", "check.sh", "report.md", "sample.json"} <= {*os.listdir(bundle)}
    assert "# board" in (bundle / "artifact" / "README.md").read_text()
    # Not beside the artifact, where it would be kept when it is out of date.
    assert not (run / "export" / "pruned" / "README.md").exists()
    agreed = check(bundle)
    assert agreed.returncode == 0, agreed.stderr
    assert json.loads(agreed.stdout)["agreement"] == 1.0
    # The same build gives the same bytes.
    moved = tmp_path / "moved" / "board"
    shutil.copytree(run, moved, symlinks=False)
    again = command("bundle", moved, "--out", tmp_path / "again" / "mine.tar.gz")
    assert last_json(again)["sha256"] == last_json(done)["sha256"]
    (run / "export" / "pruned" / "README.md").write_text("mine")
    edited = command("bundle", run, "--out", tmp_path / "edited.tar.gz")
    (run / "export" / "pruned" / "README.md").unlink()
    assert "README.md, as it is" in edited.stderr
    assert (unpack(tmp_path / "edited.tar.gz", tmp_path / "edited") / "artifact" / "README.md").read_text() == "mine"
    weights = bundle / "artifact" / "model.onnx.data"
    broken = bytearray(weights.read_bytes())
    broken[100] ^= 64
    weights.write_bytes(broken)
    refused = check(bundle)
    assert refused.returncode == 3
    assert "model.onnx.data: missing, or not what was bundled" in refused.stderr


def test_a_bundle_whose_answers_drift_is_refused(board, on_host, tmp_path):
    run = board[1]
    command("bundle", run, "--out", tmp_path / "mine.tar.gz")
    bundle = unpack(tmp_path / "mine.tar.gz", tmp_path / "there")
    # As if the artifact had answered the other way round when it was validated.
    sample = read_json(bundle / "sample.json")
    sample["answers"] = [row[::-1] for row in sample["answers"]]
    (bundle / "sample.json").write_text(json.dumps(sample))
    facts = read_json(bundle / "bundle.json")
    del facts["sha256"]["sample.json"]
    (bundle / "bundle.json").write_text(json.dumps(facts))
    drifted = check(bundle)
    assert drifted.returncode == 4
    assert "of 50 answers are those that validation kept, must be 95%" in drifted.stderr


def test_an_unfinished_build_is_not_packed(tmp_path):
    done = command("bundle", tmp_path)
    assert done.returncode == 3
    assert "not a finished build" in done.stderr

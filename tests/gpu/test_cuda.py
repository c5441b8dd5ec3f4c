"""A pico build on CUDA; skipped, with what is missing, where there is none."""

import pytest
import torch

from sieve_edge.artifacts import read_manifest
from tests.command import command, last_json
from tests.integration.test_build import QUICK


@pytest.fixture(autouse=True)
def cuda():
    """Skip where this torch has no CUDA; that a machine has no NVIDIA GPU is told in ``tests/conftest.py``."""
    if not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "was built without CUDA"
        pytest.skip(f"no CUDA: torch {torch.__version__} {built}")


@pytest.fixture
def options(pico, toy_task, toy_target, tmp_path):
    return ("--target", toy_target, "--task", toy_task, "--model", pico("llama"), "--run-dir", tmp_path / "run", *QUICK)


def test_a_build_on_cuda_ends_in_an_artifact_that_is_no_worse(options, tmp_path):
    done = command("build", *options, "--device", "cuda")
    # Times of so small a model may miss their limit.
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    assert max(result["max_logit_difference"].values()) <= 5e-3
    assert result["accuracy"]["pruned"]["test"]["corrected"] >= 0.9 * result["accuracy"]["dense"]["test"]["corrected"]
    assert read_manifest(tmp_path / "run" / "calibrate").settings["device"] == "cuda"


def test_calibrate_and_learn_take_every_gpu(options, tmp_path):
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip(f"no second NVIDIA GPU: torch.cuda.device_count() is {count}")
    devices = ",".join(f"cuda:{index}" for index in range(count))
    done = command("learn", *options, "--device", devices)
    assert done.returncode == 0, done.stderr
    for verb in ("calibrate", "learn"):
        assert read_manifest(tmp_path / "run" / verb).settings["device"] == devices

"""Builds on a device that is not the processor, for which ``tests.far_device`` stands in, and on several."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sieve_edge.artifacts import read_manifest
from sieve_edge.learn import learn
from sieve_edge.model.load import load_model
from sieve_edge.model.source import find_model
from sieve_edge.model.statistics import CalibrationStats
from sieve_edge.progress import Progress
from sieve_edge.recipe import LearnRecipe
from tests.command import ENVIRONMENT, command, start
from tests.integration.test_build import QUICK
from tests.integration.test_resume import kill_when, work

# Every operator of the stand-in goes through Python.
pytestmark = pytest.mark.timeout(600)


def start_far(*words):
    asked = [sys.executable, "-m", "tests.far_device", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(asked, **pipes, text=True, env=ENVIRONMENT, start_new_session=True)


def far(*words):
    """Run ``sieve-edge`` where the device ``far`` is there."""
    process = start_far(*words)
    try:
        _, errors = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def options(pico, toy_task, toy_target):
    """Arguments of every build here."""
    return ("--target", toy_target, "--task", toy_task, "--model", pico("llama"), *QUICK)


@pytest.fixture(scope="module")
def near(options, tmp_path_factory):
    """Run on the processor, up to learn."""
    folder = tmp_path_factory.mktemp("near") / "run"
    done = command("learn", *options, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def away(options, tmp_path_factory):
    """Run on the other device, down to the exported model; a time table is measured on the way."""
    folder = tmp_path_factory.mktemp("away") / "run"
    searched = ("--set", "search.max_time_per_token_ms=1000", "--set", "search.guided.probes=0")
    far("export", *options, "--run-dir", folder, "--device", "far", *searched)
    return folder


def outputs(folder, verb):
    return read_manifest(folder / verb).outputs


def moments_agree(first, second):
    """Say whether two runs found the same moments, to the rounding of float32."""
    found = [load_file(folder / "calibrate" / "moments.safetensors") for folder in (first, second)]
    assert found[0].keys() == found[1].keys()
    for name, moment in found[0].items():
        assert torch.allclose(found[1][name], moment, rtol=1e-3, atol=1e-5 * float(moment.abs().max())), name


def errors_agree(first, second):
    """Say whether two runs learnt projections of the same form and with the same errors."""
    for file in (first / "learn").glob("*.safetensors"):
        here, there = load_file(file), load_file(second / "learn" / file.name)
        assert {name: (each.shape, each.dtype) for name, each in here.items()} == {
            name: (each.shape, each.dtype) for name, each in there.items()
        }
        assert torch.allclose(here["error"], there["error"], atol=1e-5)


def test_a_build_on_another_device_finds_what_the_processor_finds(near, away):
    assert read_manifest(away / "export").fallbacks == ()
    moments_agree(near, away)
    errors_agree(near, away)


def test_calibrate_goes_on_on_another_device(options, away, tmp_path):
    words = ("calibrate", *options, "--run-dir", tmp_path / "run", "--device", "far")
    kill_when(start_far(*words), lambda: work(tmp_path, "moments.safetensors"))
    far(*words)
    assert outputs(tmp_path / "run", "calibrate") == outputs(away, "calibrate")


def test_batches_and_matrices_are_dealt_out_to_devices(options, near, away):
    for known, devices in ((near, "cpu,cpu"), (away, "far, far:1")):
        # Beside the other run, whose statistics have another key.
        folder = known.parent / "several"
        words = ("learn", *options, "--run-dir", folder, "--device", devices)
        run = command(*words) if known == near else far(*words)
        assert run is None or run.returncode == 0, run.stderr
        for verb in ("calibrate", "learn"):
            assert read_manifest(folder / verb).settings["device"] == devices.replace(" ", "")
            assert (folder / verb).resolve() != (known / verb).resolve()
        moments_agree(known, folder)
        errors_agree(known, folder)


def test_calibrate_goes_on_on_several_devices(options, near, tmp_path):
    words = ("calibrate", *options, "--device", "cpu,cpu", "--run-dir")
    assert command(*words, tmp_path / "whole" / "run").returncode == 0
    kill_when(start(*words, tmp_path / "run"), lambda: work(tmp_path, "moments.safetensors"))
    done = command(*words, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "run", "calibrate") == outputs(tmp_path / "whole" / "run", "calibrate")


def test_learn_finds_the_same_on_any_number_of_devices(pico, near, tmp_path):
    loaded = load_model(find_model(str(pico("llama"))), "cpu")
    for devices in (("cpu",), ("cpu", "cpu")):
        folder = tmp_path / str(len(devices))
        folder.mkdir()
        stats = CalibrationStats(near / "calibrate")
        learn(loaded, stats, LearnRecipe(), {}, 0, folder, Progress(), devices)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files
    assert files == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


@pytest.mark.parametrize("method", ["gradient", "weight_svd", "input_pca"])
def test_every_method_learns_on_another_device(options, tmp_path, method):
    chosen = ("--set", f"learn.method={method}", "--set", "learn.gradient_steps=3", "--device", "far")
    far("learn", *options, "--run-dir", tmp_path / "run", *chosen)


def test_a_device_that_is_not_here_is_named(options, tmp_path):
    for device in ("cuda:99", "hal"):
        done = command("calibrate", *options, "--run-dir", tmp_path / "run", "--device", f"cpu,{device}")
        assert done.returncode == 5, done.stderr
        assert f"error: device {device}: torch" in done.stderr
        assert "Traceback" not in done.stderr

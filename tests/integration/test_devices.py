"""Builds on a device that is not the processor, for which ``tests.far_device`` stands in, and on several."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sieve_edge.artifacts import read_manifest
from tests.command import ENVIRONMENT, command
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


def test_a_build_on_another_device_finds_what_the_processor_finds(near, away):
    assert read_manifest(away / "export").fallbacks == ()
    found = {folder: load_file(folder / "calibrate" / "moments.safetensors") for folder in (near, away)}
    assert found[near].keys() == found[away].keys()
    for name, moment in found[near].items():
        assert torch.allclose(found[away][name], moment, rtol=1e-3, atol=1e-5 * float(moment.abs().max())), name
    for file in (near / "learn").glob("*.safetensors"):
        here, there = load_file(file), load_file(away / "learn" / file.name)
        assert {name: (each.shape, each.dtype) for name, each in here.items()} == {
            name: (each.shape, each.dtype) for name, each in there.items()
        }
        assert torch.allclose(here["error"], there["error"], atol=1e-5)


def test_calibrate_goes_on_on_another_device(options, away, tmp_path):
    words = ("calibrate", *options, "--run-dir", tmp_path / "run", "--device", "far")
    kill_when(start_far(*words), lambda: work(tmp_path, "moments.safetensors"))
    far(*words)
    assert outputs(tmp_path / "run", "calibrate") == outputs(away, "calibrate")


def test_learn_deals_matrices_out_to_devices(options, near, away):
    for known, devices in ((near, "cpu,cpu"), (away, "far, far:1")):
        # Beside the other run, whose statistics it shares.
        folder = known.parent / "several"
        words = ("learn", *options, "--run-dir", folder, "--device", devices)
        run = command(*words) if known == near else far(*words)
        assert run is None or run.returncode == 0, run.stderr
        assert read_manifest(folder / "learn").settings["device"] == devices.replace(" ", "")
        assert outputs(folder, "calibrate") == outputs(known, "calibrate")
        assert (folder / "learn").resolve() != (known / "learn").resolve()
        assert outputs(folder, "learn") == outputs(known, "learn")


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

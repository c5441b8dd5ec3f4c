"""A killed build goes on where it stopped and ends as if it had not been killed."""

import os
import shutil
import signal
import time

import pytest

from sieve_edge.artifacts import read_manifest
from sieve_edge.files import read_json
from sieve_edge.tune.training import STATE
from tests.command import command, start

SETTINGS = ("calibration_tokens=2000", "threads=1", "learn.fisher_prompts=64", "search.resolution=0.005")
QUICK = tuple(word for setting in SETTINGS for word in ("--set", setting))


def options(pico, toy_task, toy_target, folder):
    return ("--target", toy_target, "--task", toy_task, "--model", pico("llama"), "--run-dir", folder, *QUICK)


@pytest.fixture(scope="module")
def whole(pico, toy_task, toy_target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command("fuse", *options(pico, toy_task, toy_target, folder))
    assert done.returncode == 0, done.stderr
    return folder


def until(process, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_when(process, condition):
    until(process, condition)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def work(folder, name):
    try:
        return list(folder.glob(f"**/.*.work/{name}"))
    except FileNotFoundError:  # a finished stage was just renamed into place
        return []


@pytest.mark.parametrize("moment", ["dense_answers.json", "moments.safetensors", "0.o.safetensors", "history.jsonl"])
def test_killed_at_a_moment_it_goes_on_and_ends_the_same(pico, toy_task, toy_target, tmp_path, whole, moment):
    folder = tmp_path / "run"
    words = options(pico, toy_task, toy_target, folder)
    kill_when(start("fuse", *words), lambda: work(tmp_path, moment))
    kept = work(tmp_path, moment)[0].read_bytes()
    done = command("fuse", *words)
    assert done.returncode == 0, done.stderr
    assert read_json(folder / "search" / "plan.json") == read_json(whole / "search" / "plan.json")
    for verb in ("calibrate", "learn", "fuse"):
        assert read_manifest(folder / verb).outputs == read_manifest(whole / verb).outputs
    if moment == "history.jsonl":
        assert (folder / "search" / "history.jsonl").read_bytes().startswith(kept), "finished candidates stay"


def test_tuning_that_was_killed_ends_with_the_same_weights(pico, toy_task, toy_target, tmp_path, whole):
    shutil.copytree(whole.parent, tmp_path / "copy", symlinks=True)
    folder = tmp_path / "copy" / "run"
    settings = ("tune.method=lora", "tune.keep=always", "tune.compare_dense=false", "tune.learning_rate=0.003")
    settings += ("tune.epochs=8", "tune.evaluate_every=4", "tune.patience=1000")
    words = [*options(pico, toy_task, toy_target, folder), *(w for item in settings for w in ("--set", item))]
    assert command("tune", *words).returncode == 0
    expected = read_manifest(folder / "tune")
    shutil.rmtree(folder / "tune")
    kill_when(start("tune", *words), lambda: work(folder, f"work/{STATE}"))
    assert work(folder, f"work/{STATE}"), "it was still training"
    done = command("tune", *words)
    assert done.returncode == 0, done.stderr
    killed = read_manifest(folder / "tune")
    assert expected.metrics["kept"] == "tuned"
    assert killed.outputs == expected.outputs
    told = "training", "scores", "kept", "dtype"
    assert {name: killed.metrics[name] for name in told} == {name: expected.metrics[name] for name in told}
    # What was saved is not looked at anew.
    assert 0 < done.stderr.count("  step ") < len(expected.metrics["training"]["looks"])


def test_ctrl_c_ends_in_one_line_and_loses_nothing(pico, toy_task, toy_target, tmp_path):
    folder = tmp_path / "run"
    words = options(pico, toy_task, toy_target, folder)
    process = start("fuse", *words)
    while not work(tmp_path, "dense_answers.json"):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: finished work is kept, and the same command goes on from there"
    assert "Traceback" not in errors
    assert work(tmp_path, "dense_answers.json")


def test_a_truncated_artifact_is_refused_and_named(pico, toy_task, toy_target, tmp_path):
    folder = tmp_path / "run"
    words = options(pico, toy_task, toy_target, folder)
    assert command("learn", *words).returncode == 0
    victim = folder / "learn" / "0.o.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    done = command("search", *words)
    assert done.returncode == 3
    assert "0.o.safetensors: content differs from its manifest" in done.stderr
    assert "Traceback" not in done.stderr
    victim.write_bytes(bytes(content[:-10]))
    assert "learn: projection bank" in command("learn", *words).stderr, "a short file makes the stage run again"
    assert command("search", *words).returncode == 0


def test_a_changed_setting_runs_only_what_depends_on_it(pico, toy_task, toy_target, tmp_path):
    folder = tmp_path / "run"
    words = options(pico, toy_task, toy_target, folder)
    assert command("search", *words).returncode == 0
    done = command("search", *words, "--set", "tolerance=0.2")
    assert done.stderr.count("up to date") == 2
    assert "[3/3] search: pruning plan" in done.stderr


def test_two_builds_never_work_in_one_folder_and_wait_for_what_they_share(pico, toy_task, toy_target, tmp_path, whole):
    words = options(pico, toy_task, toy_target, tmp_path / "run")
    first = start("fuse", *words)
    until(first, lambda: work(tmp_path, ""))
    os.kill(first.pid, signal.SIGSTOP)
    refused = command("fuse", *words)
    assert refused.returncode == 3
    assert refused.stderr.strip().endswith(
        f"{tmp_path / 'run'}: another build works in it; wait for its end, or choose another --run-dir"
    )
    beside = start("fuse", *options(pico, toy_task, toy_target, tmp_path / "beside"))
    until(beside, (tmp_path / "beside" / "status.json").is_file)
    os.kill(first.pid, signal.SIGCONT)
    ends = [process.communicate(timeout=120) for process in (first, beside)]
    assert [process.returncode for process in (first, beside)] == [0, 0], ends
    for folder in (tmp_path / "run", tmp_path / "beside"):
        assert read_json(folder / "search" / "plan.json") == read_json(whole / "search" / "plan.json")
    assert len(list(tmp_path.glob("shared/calibrate-*"))) == 1
    assert "another build makes" in ends[1][1]

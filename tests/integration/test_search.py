"""The search through the real command line: strategies, cache, crash safety, front and refit."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest

from sieve_edge.artifacts import read_manifest
from sieve_edge.files import read_json, read_jsonl
from tests.command import command, last_json, start

COMMON = (
    "calibration_tokens=2000",
    "threads=1",
    "learn.fisher_prompts=64",
    "search.part=50",
    "search.refit_prompts=100",
    "search.genetic.population=10",
    "search.genetic.patience=2",
)


@pytest.fixture
def words(pico, toy_task, toy_target):
    def make(folder, *settings):
        chosen = [word for setting in (*COMMON, *settings) for word in ("--set", setting)]
        return ("--target", toy_target, "--task", toy_task, "--model", pico("llama"), "--run-dir", folder, *chosen)

    return make


def records(folder):
    found, torn = read_jsonl(folder / "search" / "history.jsonl")
    assert not torn
    return found


@pytest.mark.parametrize("strategy", ["uniform", "genetic", "guided"])
def test_the_smallest_feasible_plan_that_was_scored_is_chosen(words, tmp_path, strategy):
    folder = tmp_path / "run"
    done = command("search", *words(folder, f"search.strategy={strategy}", "search.accept=point"))
    assert done.returncode == 0, done.stderr
    plan, history = read_json(folder / "search" / "plan.json"), records(folder)
    assert len({(record["plan"], record["rung"]) for record in history}) == len(history), "nothing is scored twice"
    kept = [record["kept_linears"] for record in history if record["rung"] != "divergence"]
    assert plan["kept_linears"] in kept
    assert plan["loss"] <= 0.05
    assert plan["accept"] == "loss at most 0.05"
    assert plan["tokens_scored"] == pytest.approx(sum(record["tokens"] for record in history), abs=1)
    metrics = read_manifest(folder / "search").metrics
    assert metrics["accept"] == plan["accept"]
    bottlenecks = read_json(folder / "search" / "bottlenecks.json")
    assert bottlenecks["plans"] >= 1
    assert set(bottlenecks["dense_probability"]) == set(plan["ranks"])
    assert set(bottlenecks["kept_by_kind"]) == {"qkv", "o", "gate_up", "down"}
    assert set(bottlenecks["kept_by_layer"]) == {"0", "1"}
    generations = folder / "search" / "generations.jsonl"
    assert generations.is_file() == (strategy == "genetic")
    if strategy == "genetic":
        best = [generation["best_fitness"] for generation in read_jsonl(generations)[0]]
        assert best == sorted(best), "the fittest are kept"
        assert len(best) >= 3


def test_acceptance_by_interval_is_stricter_and_said(words, tmp_path):
    plans = {}
    for rule in ("point", "interval"):
        settings = ("search.strategy=uniform", "search.refit=false", f"search.accept={rule}", "search.confidence=0.95")
        done = command("search", *words(tmp_path / rule, *settings))
        assert done.returncode == 0, done.stderr
        plans[rule] = read_json(tmp_path / rule / "search" / "plan.json")
    assert plans["interval"]["loss_bound"] <= 0.05
    assert plans["interval"]["kept_linears"] >= plans["point"]["kept_linears"]
    assert "0.95 one-sided" in plans["interval"]["accept"]


def test_another_search_on_the_same_inputs_scores_only_what_is_new(words, tmp_path):
    first = command("search", *words(tmp_path / "a", "search.strategy=uniform"))
    assert first.returncode == 0, first.stderr
    cache = next((tmp_path / "shared").glob("scores-*.jsonl"))
    before = cache.read_bytes()
    again = command("search", *words(tmp_path / "b", "search.strategy=uniform"))
    assert again.returncode == 0, again.stderr
    assert cache.read_bytes() == before
    assert read_json(tmp_path / "b" / "search" / "plan.json") == read_json(tmp_path / "a" / "search" / "plan.json")
    other = command("search", *words(tmp_path / "c", "search.strategy=uniform", "tolerance=0.3"))
    assert other.returncode == 0, other.stderr
    old, new = (read_jsonl(file)[0] for file in (tmp_path / "a" / "search" / "history.jsonl", cache))
    whole = {(record["plan"], record["rung"]) for record in old if len(record["answers"]) == 100}
    rescored = [record for record in new[len(old) :] if (record["plan"], record["rung"]) in whole]
    assert not rescored


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {}


@pytest.mark.parametrize("strategy", ["genetic", "guided"])
@pytest.mark.parametrize("moment", [0.15, 0.5, 0.85])
def test_killed_at_any_moment_it_ends_with_the_same_plan_and_scores_nothing_again(
    words, tmp_path, whole, strategy, moment
):
    setting = f"search.strategy={strategy}"
    if strategy not in whole:
        done = command("search", *words(tmp_path / "whole" / "run", setting))
        assert done.returncode == 0, done.stderr
        whole[strategy] = tmp_path / "whole" / "run" / "search"
    expected = read_jsonl(whole[strategy] / "history.jsonl")[0]
    folder = tmp_path / "killed" / "run"
    lines = max(1, round(moment * len(expected)))
    process = start("search", *words(folder, setting))
    deadline = time.monotonic() + 120
    while len(log := work_history(folder)) < lines:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(random.Random(moment).uniform(0.0, 0.01))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log = work_history(folder)
    done = command("search", *words(folder, setting))
    assert done.returncode == 0, done.stderr
    ended = (folder / "search" / "history.jsonl").read_bytes().splitlines(keepends=True)
    assert ended[: len(log)] == log, "what was finished stays"
    assert len(ended) == len(expected), "and nothing is scored again"
    for name in ("plan.json", "bottlenecks.json"):
        assert read_json(folder / "search" / name) == read_json(whole[strategy] / name)
    assert [timeless(line) for line in map(json.loads, ended)] == [timeless(record) for record in expected]


def timeless(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def work_history(folder):
    """Complete lines of the history of a search under way."""
    files = list(folder.glob(".search.*.work/history.jsonl"))
    lines = files[0].read_bytes().splitlines(keepends=True) if files else []
    return [line for line in lines if line.endswith(b"\n")]


def test_a_torn_last_line_is_dropped_and_said(words, tmp_path):
    folder = tmp_path / "run"
    process = start("search", *words(folder, "search.strategy=genetic"))
    while len(work_history(folder)) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    history = next(folder.glob(".search.*.work/history.jsonl"))
    kept = [line for line in history.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    history.write_bytes(b"".join(kept) + b'{"plan": "torn')
    done = command("search", *words(folder, "search.strategy=genetic"))
    assert done.returncode == 0, done.stderr
    assert "history.jsonl: the last line was torn and is dropped" in done.stderr
    assert (folder / "search" / "history.jsonl").read_bytes().startswith(b"".join(kept))


def test_any_plan_of_the_front_can_be_fused(words, tmp_path):
    folder = tmp_path / "run"
    settings = ("search.front=true", "search.strategy=genetic")
    done = command("fuse", *words(folder, *settings))
    assert done.returncode == 0, done.stderr
    front = read_json(folder / "search" / "front.json")
    kept, accuracy = ([plan[name] for plan in front] for name in ("kept_linears", "accuracy"))
    assert len(front) >= 2
    assert kept == sorted(kept, reverse=True)
    assert accuracy == sorted(accuracy, reverse=True)
    searched = read_manifest(folder / "search").key
    for number in (1, len(front)):
        done = command("fuse", *words(folder, *settings), "--plan", str(number))
        assert done.returncode == 0, done.stderr
        metrics = last_json(done)["metrics"]
        assert metrics["plan"] == front[number - 1]["id"]
        assert metrics["kept_fraction"]["linears"] == pytest.approx(front[number - 1]["kept_linears"])
        # Pivoted storage rounds differently; the labels it gives are the same but for ties.
        assert metrics["selection"]["corrected"] == pytest.approx(front[number - 1]["accuracy"], abs=0.021)
    assert read_manifest(folder / "search").key == searched, "the search is not run again"
    missing = command("fuse", *words(folder, *settings), "--plan", str(len(front) + 1))
    assert missing.returncode == 3
    assert missing.stderr.splitlines()[-1].endswith(
        f"the front has the plans 1 to {len(front)}; see {folder / 'search' / 'front.json'}"
    )


def test_a_front_that_was_not_kept_is_asked_for_in_one_line(words, tmp_path):
    folder = tmp_path / "run"
    done = command("fuse", *words(folder, "search.strategy=uniform"), "--plan", "1")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "error: plan 1: the search kept no front; build with --set search.front=true"


def test_refit_is_recorded_per_matrix_and_its_factors_are_what_is_fused(words, tmp_path):
    folder = tmp_path / "run"
    done = command("fuse", *words(folder, "search.accept=point", "search.guided.swap_rounds=0"))
    assert done.returncode == 0, done.stderr
    plan = read_json(folder / "search" / "plan.json")
    refitted = {record["plan"]: record for record in records(folder) if record["rung"] == "refit"}
    assert refitted
    for record in refitted.values():
        pruned = [name for name, rank in record["ranks"].items() if rank]
        assert {entry["matrix"] for entry in record["refits"]} == set(pruned)
        for entry in record["refits"]:
            assert entry["after"] <= entry["before"]
            assert (entry["ridge"] is None) == (entry["after"] == entry["before"])
    if plan["refit"]:
        assert read_manifest(folder / "fuse").metrics["refit"]
        assert (folder / "search" / f"refit-{plan['id']}.safetensors").is_file()
        fused = read_manifest(folder / "fuse").metrics["selection"]["corrected"]
        assert fused == pytest.approx(plan["accuracy"], abs=0.011)
    scores = np.array(next(iter(refitted.values()))["answers"])
    assert np.isfinite(scores).all()

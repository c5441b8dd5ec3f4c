"""Limits of the search through the real command line, and the time table that two of them need."""

import math

import pytest

from sieve_edge.artifacts import MatrixSpec, read_manifest
from sieve_edge.device.times import TimeTable
from sieve_edge.errors import SieveError
from sieve_edge.files import read_json
from sieve_edge.progress import Progress
from sieve_edge.search.space import make_space
from sieve_edge.search.times import time_table
from tests.command import command, last_json
from tests.tiny_onnx import make_target, write_folder

SETTINGS = ("calibration_tokens=2000", "threads=1", "learn.fisher_prompts=64", "search.part=50")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def search(pico, toy_task, toy_target, runs):
    def run(name, *settings):
        chosen = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        where = ("--target", toy_target, "--task", toy_task, "--model", pico("llama"), "--run-dir", runs / name)
        return command("search", *where, *chosen)

    return run


def missed(done, *texts):
    assert done.returncode == 4, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0] == done.stderr.splitlines()[-1]
    for text in texts:
        assert text in lines[0]
    return lines[0]


def test_a_plan_is_within_the_parameters_allowed(search, runs):
    done = search("params", "search.max_params=16000")
    assert done.returncode == 0, done.stderr
    plan, costs = read_json(runs / "params" / "search" / "plan.json"), last_json(done)["metrics"]["costs"]
    dense = int(done.stderr.split("max_params 16000 parameters: the dense model has ")[1].split()[0])
    assert dense > 16_000
    assert costs == {"max_params": pytest.approx(plan["kept_model"] * dense)}
    assert costs["max_params"] <= 16_000
    assert not list((runs / "shared").glob("times-*")), "nothing is measured that is not needed"


def test_a_limit_that_no_plan_meets_ends_in_one_line_and_keeps_finished_stages(search, runs):
    line = missed(search("params", "search.max_params=1000"), "search.max_params 1000 parameters: the cheapest plan")
    needed = int(line.split("needs ")[1].split(",", maxsplit=1)[0])
    for verb in ("calibrate", "learn", "search"):
        read_manifest(runs / "params" / verb)
    done = search("params", f"search.max_params={needed}", "search.accept=point", "tolerance=0.01")
    missed(done, f"search.max_params {needed} parameters: no plan keeps the loss within", "the best within the limit")
    assert done.stderr.count("up to date") == 2


def test_time_limits_measure_a_table_once(search, runs):
    done = search("times", "search.max_time_per_answer_ms=10000", "search.max_time_per_token_ms=10000")
    assert done.returncode == 0, done.stderr
    (file,) = (runs / "shared").glob("times-*.json")
    assert f"to be kept as {file.name}" in done.stderr
    table = TimeTable.from_json(read_json(file), str(file))
    assert table.threads == 1
    assert all(math.isfinite(row.prefill_ms) and row.decode_ms >= 0.0 for row in table.rows)
    costs = last_json(done)["metrics"]["costs"]
    assert set(costs) == {"max_time_per_answer_ms", "max_time_per_token_ms"}
    assert max(costs.values()) < 10_000
    assert not (runs / "times" / "search" / "dense").exists(), "the dense model that was written for it is gone"
    before = file.stat().st_mtime_ns
    done = search("again", "search.max_time_per_token_ms=1e-9")
    missed(done, "search.max_time_per_token_ms 1e-09 ms: the cheapest plan of the grid needs")
    assert f"{file.name}, measured before" in done.stderr
    assert [(path, path.stat().st_mtime_ns) for path in (runs / "shared").glob("times-*")] == [(file, before)]


def test_a_table_belongs_to_its_space_target_and_model(tmp_path):
    folder, shared = write_folder(tmp_path / "model"), tmp_path / "shared"
    specs = [
        MatrixSpec("0.qkv", ("q", "k"), (16, 8), 24, 16, "pre"),
        MatrixSpec("0.o", ("o",), (16,), 16, 16, "post"),
    ]
    space = make_space(specs, (1.0, 0.5), "pivoted", 2, 100)
    written = []

    def write(place):
        written.append(place)
        (place / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())

    def table(dense, model="a", prompt=(1, 2, 6, 3, 2), target=None):
        return time_table(space, prompt, target or make_target(), model, dense, shared, tmp_path, Progress())

    first = table(write)
    assert written == [tmp_path / "dense"]
    assert not written[0].exists()
    assert first.prompt_tokens == 5
    assert {row.matrix.storage for row in first.rows} == {"dense", "pivoted_input", "pivoted_output"}
    assert table(tmp_path / "nowhere") == first, "nothing is measured again"
    assert len(list(shared.iterdir())) == 1
    table(folder, model="b")
    table(folder, prompt=(1, 2, 6))
    table(folder, target=make_target().model_copy(update={"threads": 2}))
    assert len(list(shared.iterdir())) == 4
    with pytest.raises(SieveError, match="missing"):
        table(tmp_path / "nowhere", model="c")

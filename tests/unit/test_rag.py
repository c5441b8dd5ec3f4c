"""The benchmark of the RAG tasks: dense figures stay, whether the build refuses the task or fails at it."""

from types import SimpleNamespace

import pytest

from benchmarks import rag
from sieve_edge.errors import LimitMissed, TaskError
from sieve_edge.files import read_json

DENSE = {"score": 0.7, "interval95": [0.65, 0.75], "baseline": 0.5}


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Run the benchmark on two tasks with a build of the test's own; return how to read the rows."""

    def measured(build):
        replaced = {"find_model": lambda _: SimpleNamespace(name="toy"), "Run": lambda *_: None, "build": build}
        for name, value in (replaced | {"_dense": lambda *_, **__: DENSE, "RESULTS": tmp_path}).items():
            monkeypatch.setattr(rag, name, value)
        monkeypatch.setattr("sys.argv", ["rag", "--tasks", "boolq", "pubmedqa", "--threads", "1"])
        rag.main()

    return measured, lambda: read_json(tmp_path / "rag.json")["rows"]


def test_a_task_that_the_build_refuses_is_a_row_with_its_dense_figures(measure):
    run, rows = measure
    asked = []

    def build(_, until):
        asked.append(until)
        raise TaskError("the dense model is not above the baseline")

    run(build)
    assert [row["task"] for row in rows()] == ["boolq", "pubmedqa"]
    assert asked == ["calibrate", "calibrate"], "what is refused is not pruned"
    for row in rows():
        assert row["dense_score"] == pytest.approx(0.7)
        assert row["refused"] == "the dense model is not above the baseline"


def test_dense_figures_are_there_before_pruning_begins(measure):
    run, rows = measure

    def build(_, until):
        if until == "fuse":
            raise LimitMissed("stopped")

    with pytest.raises(LimitMissed, match="stopped"):
        run(build)
    assert [(row["task"], row["dense_score"]) for row in rows()] == [("boolq", pytest.approx(0.7))]
    assert "refused" not in rows()[0]

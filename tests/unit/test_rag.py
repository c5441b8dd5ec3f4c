"""The benchmark of the RAG tasks: a task that the build refuses keeps its dense figures, and ends nothing."""

from types import SimpleNamespace

import pytest

from benchmarks import rag
from sieve_edge.errors import TaskError
from sieve_edge.files import read_json

DENSE = {"score": 0.7, "interval95": [0.65, 0.75], "baseline": 0.5}


def test_a_task_that_the_build_refuses_is_a_row_with_its_dense_figures(monkeypatch, tmp_path):
    kept_before = []

    def build(*_):
        kept_before.extend(read_json(tmp_path / "rag.json")["rows"])
        raise TaskError("the dense model is not above the baseline")

    run = SimpleNamespace(loaded=SimpleNamespace(model=None))
    replaced = {"find_model": lambda _: SimpleNamespace(name="toy"), "Run": lambda *_: run, "build": build}
    replaced |= {"_score": lambda *_: DENSE, "RESULTS": tmp_path}
    for name, value in replaced.items():
        monkeypatch.setattr(rag, name, value)
    monkeypatch.setattr("sys.argv", ["rag", "--tasks", "boolq", "pubmedqa", "--threads", "1"])
    rag.main()
    rows = read_json(tmp_path / "rag.json")["rows"]
    assert [row["task"] for row in rows] == ["boolq", "pubmedqa"]
    for row in rows:
        assert row["dense_score"] == pytest.approx(0.7)
        assert row["refused"] == "the dense model is not above the baseline"
    assert "refused" not in kept_before[0], "the dense figures are there before the build begins"

"""``inspect`` names the runtimes that find what they need, and no others."""

from pathlib import Path

import pytest

from sieve_edge.device.inspect import inspect_path
from tests.tiny_onnx import write_folder


def test_a_graph_alone_is_for_onnxruntime(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "alone")
    facts = inspect_path(folder)
    assert (facts["format"], facts["version"], facts["factored_version"]) == ("onnx", 10, None)
    assert facts["loads_in"] == ["onnxruntime"]


@pytest.mark.parametrize(
    ("file", "runtime"),
    [("config.json", "optimum (ORTModelForCausalLM)"), ("genai_config.json", "onnxruntime-genai")],
)
def test_others_need_what_describes_the_graph_to_them(tmp_path: Path, file: str, runtime: str) -> None:
    folder = write_folder(tmp_path / "described")
    (folder / file).write_text("{}", encoding="utf-8")
    assert inspect_path(folder)["loads_in"] == ["onnxruntime", runtime]

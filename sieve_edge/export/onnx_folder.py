"""Writes a model as a folder for onnxruntime, optimum and onnxruntime-genai, and proves it in ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sieve_edge.export.check import check_folder
from sieve_edge.export.onnx_companions import write_companions
from sieve_edge.export.to_onnx import write_graph
from sieve_edge.protocols import Progress


def write_onnx_folder(
    model: Any, tokenizer: Any, prompts: Sequence[str], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write the graph with its weights, what stands beside it, and the reference.

    Args:
        model: transformers model, dense or with factored linears, float32 on the CPU.
        tokenizer: Its fast tokenizer.
        prompts: Texts that the reference is made of, at least one.
        folder: Existing folder.
        progress: Told of each of three steps.

    Returns:
        ``max_logit_difference`` and the graph's ``nodes``.
    """
    nodes = write_graph(model, folder)
    progress(1)
    write_companions(model, tokenizer, folder)
    progress(1)
    difference = check_folder(model, [tokenizer.backend_tokenizer.encode(prompt).ids for prompt in prompts], folder)
    progress(1)
    return {"max_logit_difference": difference, "nodes": nodes}

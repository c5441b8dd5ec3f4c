"""Writes a model as a folder for onnxruntime, optimum and onnxruntime-genai, and proves it in ONNX Runtime."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.reference import DRIFT, REFERENCE, drift
from sieve_edge.export.check import check_folder
from sieve_edge.export.onnx_companions import write_companions
from sieve_edge.export.to_onnx import Stored, write_graph
from sieve_edge.files import write_json
from sieve_edge.protocols import Progress

_FLOAT32 = "float32.part"


def write_onnx_folder(
    model: Any, tokenizer: Any, prompts: Sequence[str], stored: Stored | None, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write the graph with its weights, what stands beside it, and the reference.

    Smaller weights are written after a graph in float32 was proved, and how far they are from it is measured.

    Args:
        model: transformers model, dense or with factored linears, float32 on the CPU.
        tokenizer: Its fast tokenizer.
        prompts: Texts that the reference is made of, at least one.
        stored: How weights are stored; None for float32.
        folder: Existing folder.
        progress: Told of each of three steps.

    Returns:
        ``max_logit_difference`` of the float32 graph, the graph's ``nodes``, and for smaller weights ``quantized``.
    """
    plain = folder if stored is None else folder / _FLOAT32
    plain.mkdir(exist_ok=True)
    nodes = write_graph(model, plain)
    progress(1)
    difference = check_folder(model, [tokenizer.backend_tokenizer.encode(prompt).ids for prompt in prompts], plain)
    progress(1)
    metrics: dict[str, Any] = {"max_logit_difference": difference}
    if stored is not None:
        (plain / REFERENCE).replace(folder / REFERENCE)
        shutil.rmtree(plain)
        nodes = write_graph(model, folder, stored)
        metrics["quantized"] = asdict(drift(OrtTextModel(folder, torch.get_num_threads()), folder / REFERENCE))
        write_json(folder / DRIFT, metrics["quantized"])
    write_companions(model, tokenizer, folder)
    progress(1)
    return {**metrics, "nodes": nodes}

"""Writes a dense and a pruned model as ONNX folders, and proves in ONNX Runtime that they compute the same."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sieve_edge.export.check import check_folder
from sieve_edge.export.folder import write_companions
from sieve_edge.export.write import write_graph
from sieve_edge.protocols import Progress

EXPORT_STEPS = 6
"""How often ``progress`` is told of a finished step."""


def export(
    dense: Any, sieved: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], out: Path, progress: Progress
) -> dict[str, Any]:
    """Write ``out/dense`` and ``out/pruned``, each a folder for onnxruntime, optimum and onnxruntime-genai.

    Reads nothing. May be interrupted: what it has written is incomplete without the caller's manifest, and is
    written anew. Costs about ten seconds and one copy of the largest weight per model.

    Args:
        dense: transformers model in evaluation mode, float32 on the CPU, eager attention.
        sieved: The same with factored linears.
        tokenizer: Their fast tokenizer.
        prompts: Token ids that the reference is made of, at least one prompt.
        out: Folder that gets both folders.
        progress: Called once for each of ``EXPORT_STEPS``.

    Returns:
        Each of ``max_logit_difference``, ``size_mib``, ``nodes`` and ``seconds`` for ``dense`` and ``pruned``.
    """
    metrics: dict[str, Any] = {"max_logit_difference": {}, "size_mib": {}, "nodes": {}, "seconds": {}}
    for name, model in (("dense", dense), ("pruned", sieved)):
        started = time.perf_counter()
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        metrics["nodes"][name] = write_graph(model, folder)
        progress(1)
        write_companions(model, tokenizer, folder)
        progress(1)
        metrics["max_logit_difference"][name] = check_folder(model, prompts, folder)
        progress(1)
        metrics["size_mib"][name] = sum(file.stat().st_size for file in folder.glob("model.onnx*")) / 2**20
        metrics["seconds"][name] = time.perf_counter() - started
    return metrics

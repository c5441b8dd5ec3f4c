"""Writes a dense and a pruned model as folders for a target's runtime, and proves there that they compute the same."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sieve_edge.config import Target
from sieve_edge.device.runtimes import WEIGHTS
from sieve_edge.protocols import Progress

EXPORT_STEPS = 6
"""How often ``progress`` is told of a finished step."""


def export(
    dense: Any,
    sieved: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    name: str,
    target: Target,
    out: Path,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Write ``out/dense`` and ``out/pruned``, each a folder for the target's runtime.

    Reads nothing. May be interrupted: what it has written is incomplete without the caller's manifest, and is
    written anew. Costs about ten seconds and one copy of the largest weight per model.

    Args:
        dense: transformers model in evaluation mode, float32 on the CPU, eager attention.
        sieved: The same with factored linears.
        tokenizer: Their fast tokenizer.
        prompts: Texts that the reference is made of, at least one.
        name: The model's name, for people.
        target: Format and quantization.
        out: Folder that gets both folders.
        progress: Called once for each of ``EXPORT_STEPS``.

    Returns:
        ``(metrics, fallbacks)``; each metric for ``dense`` and ``pruned``.
    """
    metrics: dict[str, Any] = {"size_mib": {}, "seconds": {}}
    fallbacks: list[str] = []
    for kind, model in (("dense", dense), ("pruned", sieved)):
        started = time.perf_counter()
        folder = out / kind
        folder.mkdir(parents=True, exist_ok=True)
        if target.format == "gguf":
            from sieve_edge.export.gguf_folder import write_gguf_folder

            title = name if kind == "dense" else f"{name} pruned"
            measured, changed = write_gguf_folder(
                model, tokenizer, prompts, title, target.quantization, folder, progress
            )
            fallbacks += [f"{kind}: {tensor}" for tensor in changed]
        else:
            from sieve_edge.export.onnx_folder import write_onnx_folder

            measured = write_onnx_folder(model, tokenizer, prompts, folder, progress)
        for metric, value in measured.items():
            metrics.setdefault(metric, {})[kind] = value
        metrics["size_mib"][kind] = sum(file.stat().st_size for file in folder.glob(WEIGHTS)) / 2**20
        metrics["seconds"][kind] = time.perf_counter() - started
    return metrics, fallbacks

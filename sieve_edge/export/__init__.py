"""Writes a dense and a pruned model as folders for a target's runtime, and proves there that they compute the same."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sieve_edge.config import Target
from sieve_edge.device.runtimes import WEIGHTS
from sieve_edge.files import read_json
from sieve_edge.protocols import Progress

EXPORT_STEPS = 6
"""How often ``progress`` is told of a finished step."""


def export(
    models: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    prompts: Sequence[str],
    name: str,
    quantized: Path,
    target: Target,
    out: Path,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Write ``out/dense`` and ``out/pruned``, each a folder for the target's runtime.

    Reads the quantization plan. May be interrupted: what it has written is incomplete without the caller's manifest,
    and is written anew. Costs about ten seconds and one copy of the largest weight per model.

    Args:
        models: ``"dense"`` and ``"pruned"`` -> transformers model in evaluation mode, float32 on the CPU, eager
            attention.
        tokenizers: Their fast tokenizers.
        prompts: Texts that the reference is made of, at least one.
        name: The model's name, for people.
        quantized: Artifact of quantize.
        target: Format and quantization.
        out: Folder that gets both folders.
        progress: Called once for each of ``EXPORT_STEPS``.

    Returns:
        ``(metrics, fallbacks)``; each metric for ``dense`` and ``pruned``.
    """
    metrics: dict[str, Any] = {"size_mib": {}, "seconds": {}}
    fallbacks: list[str] = []
    for kind, model in models.items():
        tokenizer = tokenizers[kind]
        started = time.perf_counter()
        folder = out / kind
        folder.mkdir(parents=True, exist_ok=True)
        if target.format == "gguf":
            from sieve_edge.export.gguf_folder import write_gguf_folder

            title = name if kind == "dense" else f"{name} pruned"
            weights = gguf_weights(quantized, kind, target.quantization)
            measured, changed = write_gguf_folder(model, tokenizer, prompts, title, weights, folder, progress)
            fallbacks += [f"{kind}: {tensor}" for tensor in changed]
        else:
            from sieve_edge.export.onnx_folder import write_onnx_folder

            stored = stored_weights(quantized, kind, target.quantization)
            measured = write_onnx_folder(model, tokenizer, prompts, stored, folder, progress)
        for metric, value in measured.items():
            metrics.setdefault(metric, {})[kind] = value
        metrics["size_mib"][kind] = sum(file.stat().st_size for file in folder.glob(WEIGHTS)) / 2**20
        metrics["seconds"][kind] = time.perf_counter() - started
    return metrics, fallbacks


def stored_weights(quantized: Path, kind: str, quantization: str) -> Any:
    """Read how an ONNX graph's weights are stored.

    Args:
        quantized: Artifact of quantize.
        kind: Model of its plan.
        quantization: The target's.

    Returns:
        A ``Stored``; None for float32.
    """
    from sieve_edge.config import BITS
    from sieve_edge.export.to_onnx import Stored

    if quantization == "F32":
        return None
    plan = read_json(quantized / "plan.json")["weights"][kind]
    names = tuple(name for name, entry in plan.items() if entry["type"] == quantization)
    return Stored(BITS.get(quantization, 16), names, quantized_tensors(quantized, kind))


def gguf_weights(quantized: Path, kind: str, quantization: str) -> Any:
    """Read how a GGUF file's weights are stored.

    Args:
        quantized: Artifact of quantize.
        kind: Model of its plan.
        quantization: The target's.

    Returns:
        A ``GgufWeights``.
    """
    from sieve_edge.export.gguf_folder import GgufWeights

    if quantization == "F32":
        return GgufWeights(quantization)
    plan = read_json(quantized / "plan.json")
    types = {name: entry["types"] for name, entry in plan["weights"][kind].items()}
    return GgufWeights(quantization, types, quantized_tensors(quantized, kind), plan["allow_fallback"])


def quantized_tensors(quantized: Path, kind: str) -> dict[str, Any]:
    """Read what a quantization plan computed for a model.

    Args:
        quantized: Artifact of quantize.
        kind: Model of its plan.

    Returns:
        Codes and scales, or the mean square of every weight's inputs, by name; empty where nothing is needed.
    """
    from safetensors.torch import load_file

    file = quantized / f"{kind}.safetensors"
    return load_file(file) if file.is_file() else {}

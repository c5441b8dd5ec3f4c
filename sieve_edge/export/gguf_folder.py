"""Writes a model as a folder with one GGUF file, proves it in llama.cpp in float32, and then quantizes it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sieve_edge.device.llama import GGUF, LlamaTextModel
from sieve_edge.device.reference import DRIFT, REFERENCE, drift, reference_tokens, write_reference
from sieve_edge.errors import ArtifactError
from sieve_edge.export.check import MAX_DIFFERENCE, all_logits
from sieve_edge.export.quantize_gguf import Types, quantize_gguf, tensor_types, unplanned
from sieve_edge.export.to_gguf import gguf_origins, write_gguf
from sieve_edge.files import disk_errors, write_json
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.protocols import Progress

TYPES = "types.json"
"""Type of every tensor of the GGUF file, as it is."""

_FLOAT32 = "model-f32.gguf.part"


@dataclass(frozen=True)
class GgufWeights:
    """How the weights of a GGUF file are to be stored.

    Attributes:
        quantization: The target's.
        types: Parameter -> types that its tensors may have; not needed for float32.
        importance: Weight -> mean square of each of its inputs, (I,), for the quantizer; empty for none.
        allow_fallback: Whether a tensor may take a type that is not planned.
    """

    quantization: str
    types: Mapping[str, Sequence[str]] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    allow_fallback: bool = False


def write_gguf_folder(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    name: str,
    weights: GgufWeights,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Write ``model.gguf``, ``tokenizer.json``, the reference, and ``types.json``.

    Args:
        model: transformers model, dense or with factor pairs, float32 on the CPU.
        tokenizer: Its fast tokenizer.
        prompts: Texts that the reference is made of, at least one.
        name: The model's name, for people.
        weights: How its weights are stored.
        folder: Existing folder.
        progress: Told of each of three steps.

    Returns:
        ``(metrics, tensors that took a type that is not planned)``.
    """
    file, plain = folder / GGUF, folder / _FLOAT32
    factored = write_gguf(model, tokenizer, name, plain)
    with disk_errors(folder):
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    progress(1)
    ids = [tokenizer.backend_tokenizer.encode(prompt).ids for prompt in prompts]
    worst = _check(model, prompts, ids, plain, folder / REFERENCE)
    progress(1)
    metrics: dict[str, Any] = {"max_logit_difference": worst, "factored": factored}
    fallbacks: list[str] = []
    if weights.quantization == "F32":
        plain.replace(file)
        types = tensor_types(file)
    else:
        fallbacks, types = _quantize(model, plain, file, weights)
        plain.unlink()
        runtime = LlamaTextModel(file, torch.get_num_threads(), reference_tokens(folder / REFERENCE))
        metrics["quantized"] = asdict(drift(runtime, folder / REFERENCE))
        write_json(folder / DRIFT, metrics["quantized"])
    write_json(folder / TYPES, {tensor: kind for tensor, (_, kind) in types.items()})
    metrics["types"] = dict(Counter(kind for _, kind in types.values()).most_common())
    progress(1)
    return metrics, fallbacks


def _quantize(model: Any, plain: Path, file: Path, weights: GgufWeights) -> tuple[list[str], Types]:
    """Quantize, and refuse a type that is not planned; what it puts up with, and all types."""
    origins = gguf_origins(model)
    importance = {
        tensor: weights.importance[origin].float().numpy()
        for tensor, origin in origins.items()
        if origin in weights.importance
    }
    types = quantize_gguf(plain, file, weights.quantization, torch.get_num_threads(), importance)
    lines = unplanned(types, {tensor: weights.types[origin] for tensor, origin in origins.items()})
    if lines and not weights.allow_fallback:
        raise ArtifactError(
            f"{file}: llama.cpp stored {len(lines)} tensors in another type than planned, first {lines[0]}; choose "
            "another quantization, or --set quantize.allow_fallback=true"
        )
    return lines, types


def _check(model: Any, texts: Sequence[str], prompts: Sequence[Sequence[int]], file: Path, reference: Path) -> float:
    """Write the reference and compare: tokens, every logit of each prompt, then padded and cached."""
    expected = TorchTextModel(model, "cpu")
    write_reference(expected, prompts, reference)
    tokens = max(reference_tokens(reference), *map(len, prompts))
    exported = LlamaTextModel(file, torch.get_num_threads(), tokens, "f32")
    for text, ids in zip(texts, prompts, strict=True):
        if exported.encode(text) != list(ids):
            raise ArtifactError(f"{file}: llama.cpp splits {text[:80]!r} into other tokens than the model's tokenizer")
    each = [float(np.abs(all_logits(expected, ids) - all_logits(exported, ids)).max()) for ids in prompts]
    worst = float(np.max([drift(exported, reference).max_difference, *each]))
    # Written so that a difference that is not a number fails too.
    if not worst <= MAX_DIFFERENCE:
        raise ArtifactError(
            f"{file}: its logits in llama.cpp differ from the model's by {worst:.2g}, allowed {MAX_DIFFERENCE:g}"
        )
    return worst

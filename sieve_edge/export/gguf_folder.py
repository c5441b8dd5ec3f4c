"""Writes a model as a folder with one GGUF file, proves it in llama.cpp in float32, and then quantizes it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sieve_edge.device.llama import GGUF, LlamaTextModel
from sieve_edge.device.reference import DRIFT, REFERENCE, drift, reference_tokens, write_reference
from sieve_edge.errors import ArtifactError
from sieve_edge.export.check import MAX_DIFFERENCE, all_logits
from sieve_edge.export.quantize_gguf import quantize_gguf
from sieve_edge.export.to_gguf import gguf_importance, write_gguf
from sieve_edge.files import disk_errors, write_json
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.protocols import Progress

_FLOAT32 = "model-f32.gguf.part"


def write_gguf_folder(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    name: str,
    quantization: str,
    importance: Mapping[str, Tensor],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Write ``model.gguf``, ``tokenizer.json`` and the reference.

    Args:
        model: transformers model, dense or with factor pairs, float32 on the CPU.
        tokenizer: Its fast tokenizer.
        prompts: Texts that the reference is made of, at least one.
        name: The model's name, for people.
        quantization: Target's quantization.
        importance: Weight -> mean square of each of its inputs, (I,), for the quantizer; empty for none.
        folder: Existing folder.
        progress: Told of each of three steps.

    Returns:
        ``(metrics, tensors that did not take the type asked for)``.
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
    if quantization == "F32":
        plain.replace(file)
        progress(1)
        return metrics, []
    named = gguf_importance(model, importance)
    fallbacks = quantize_gguf(plain, file, quantization, torch.get_num_threads(), named)
    plain.unlink()
    runtime = LlamaTextModel(file, torch.get_num_threads(), reference_tokens(folder / REFERENCE))
    metrics["quantized"] = asdict(drift(runtime, folder / REFERENCE))
    write_json(folder / DRIFT, metrics["quantized"])
    progress(1)
    return metrics, fallbacks


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

"""Loads an exported folder in ONNX Runtime and compares it with the model that it came from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.reference import REFERENCE, drift, write_reference
from sieve_edge.errors import ArtifactError
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.protocols import Float32, TextModel

MAX_DIFFERENCE = 5e-3


def check_folder(model: Any, prompts: Sequence[Sequence[int]], folder: Path) -> float:
    """Write the folder's reference, and compare: every logit of each prompt, then padded and cached.

    Args:
        model: transformers model that was exported.
        prompts: Token ids, at least one prompt.
        folder: Exported folder; gets ``reference.npz``.

    Returns:
        Largest absolute difference of a logit.

    Raises:
        ArtifactError: If it is larger than float32 explains.
    """
    expected = TorchTextModel(model, "cpu")
    write_reference(expected, prompts, folder / REFERENCE)
    exported = OrtTextModel(folder, torch.get_num_threads())
    uncached = [float(np.abs(all_logits(expected, prompt) - all_logits(exported, prompt)).max()) for prompt in prompts]
    worst = float(np.max([drift(exported, folder / REFERENCE).max_difference, *uncached]))
    # Written so that a difference that is not a number fails too.
    if not worst <= MAX_DIFFERENCE:
        raise ArtifactError(
            f"{folder}: its logits in ONNX Runtime differ from the model's by {worst:.2g}, allowed {MAX_DIFFERENCE:g}; "
            "another onnxruntime version may compute an operator differently: install the one in constraints.txt"
        )
    return worst


def all_logits(model: TextModel, prompt: Sequence[int]) -> Float32:
    """Run one prompt without a cache.

    Args:
        model: Model in any runtime.
        prompt: Token ids.

    Returns:
        Logits of every position, (1, T, V).
    """
    ids = np.asarray([prompt], dtype=np.int64)
    logits, _ = model.forward(ids, np.ones_like(ids), np.arange(ids.shape[1])[None], [], 0)
    return logits

"""Reference inputs and logits that travel beside an artifact, so that any device can compare without torch.

Dimension key: B prompts, T tokens of the longest prompt, N cached decode steps, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sieve_edge.errors import ArtifactError
from sieve_edge.files import disk_errors
from sieve_edge.protocols import Float32, Int64, TextModel

REFERENCE = "reference.npz"
DECODE_STEPS = 16
_FIELDS = ("input_ids", "attention_mask", "tokens", "logits")


def write_reference(model: TextModel, prompts: Sequence[Sequence[int]], file: Path) -> None:
    """Run prompts as one left-padded batch, then decode greedily with the cache, and keep what came out.

    Args:
        model: Model whose logits are the reference.
        prompts: Token ids, at least one prompt; none is empty.
        file: File to write.
    """
    width = max(len(prompt) for prompt in prompts)
    input_ids = np.zeros((len(prompts), width), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        attention_mask[row, width - len(prompt) :] = 1
    tokens, logits = _run(model, input_ids, attention_mask, None)
    with disk_errors(file):
        np.savez(file, input_ids=input_ids, attention_mask=attention_mask, tokens=tokens, logits=logits)


def max_reference_difference(model: TextModel, file: Path) -> float:
    """Replay the reference inputs and compare logits.

    Args:
        model: Model to compare.
        file: What ``write_reference`` wrote.

    Returns:
        Largest absolute difference of a logit, over the prompts' last positions and every decode step;
        infinity if a logit is not a number.

    Raises:
        ArtifactError: If the file is missing or not a reference.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            input_ids, attention_mask, tokens, expected = (stored[name] for name in _FIELDS)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ArtifactError(f"{file}: not a reference ({error}); run the export again") from error
    _, logits = _run(model, input_ids, attention_mask, tokens)
    difference = float(np.abs(logits - expected).max())
    return difference if np.isfinite(difference) else float("inf")


def _run(model: TextModel, input_ids: Int64, attention_mask: Int64, forced: Int64 | None) -> tuple[Int64, Float32]:
    """Prefill and decode; returns the tokens fed (B, N) and the logits (B, N + 1, V)."""
    positions = np.maximum(np.cumsum(attention_mask, axis=1) - 1, 0)
    last, past = model.forward(input_ids, attention_mask, positions, [], 1)
    logits, tokens = [last], []
    for step in range(DECODE_STEPS if forced is None else forced.shape[1]):
        token = last[:, -1].argmax(-1).astype(np.int64)[:, None] if forced is None else forced[:, step : step + 1]
        attention_mask = np.pad(attention_mask, ((0, 0), (0, 1)), constant_values=1)
        positions = positions[:, -1:] + 1
        last, past = model.forward(token, attention_mask, positions, past, 1)
        tokens.append(token)
        logits.append(last)
    return np.concatenate(tokens, axis=1), np.concatenate(logits, axis=1)

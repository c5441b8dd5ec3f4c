"""Reference inputs and logits that travel beside an artifact, so that any device can compare without torch.

Dimension key: B prompts, T tokens of the longest prompt, N cached decode steps, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sieve_edge.errors import ArtifactError
from sieve_edge.files import disk_errors
from sieve_edge.protocols import Float32, Float64, Int64, TextModel

REFERENCE = "reference.npz"
DRIFT = "drift.json"
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


@dataclass(frozen=True)
class Drift:
    """How far a model is from the one whose logits are the reference.

    Attributes:
        max_difference: Largest absolute difference of a logit; infinity if one is not a number.
        kl: Mean Kullback-Leibler divergence of the next-token distributions from the reference, in nats.
        top1: Fraction of positions with the same most likely token.
    """

    max_difference: float
    kl: float
    top1: float


def drift(model: TextModel, file: Path) -> Drift:
    """Replay the reference inputs and compare, over the prompts' last positions and every decode step.

    Args:
        model: Model to compare.
        file: What ``write_reference`` wrote.

    Returns:
        How far it is.
    """
    input_ids, attention_mask, tokens, expected = _read(file)
    _, logits = _run(model, input_ids, attention_mask, tokens)
    if not np.isfinite(logits).all():
        return Drift(float("inf"), float("inf"), 0.0)
    log_p, log_q = _log_softmax(expected), _log_softmax(logits)
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    top1 = float((expected.argmax(-1) == logits.argmax(-1)).mean())
    return Drift(float(np.abs(logits - expected).max()), max(kl, 0.0), top1)


def reference_tokens(file: Path) -> int:
    """Count the tokens that replaying a reference holds at a time.

    Args:
        file: What ``write_reference`` wrote.

    Returns:
        Number of tokens of all rows, padding included.
    """
    input_ids, _, tokens, _ = _read(file)
    return int(input_ids.size + tokens.size)


def _read(file: Path) -> tuple[Any, ...]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return tuple(stored[name] for name in _FIELDS)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ArtifactError(f"{file}: not a reference ({error}); run the export again") from error


def _log_softmax(logits: Float32) -> Float64:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    result: Float64 = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


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

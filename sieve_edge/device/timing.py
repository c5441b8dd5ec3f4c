"""Timing of models side by side: warmed up, interleaved, summarised by medians with intervals.

Models take turns within every repeat and the order alternates, so what the machine does meanwhile hits all alike.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sieve_edge.protocols import Float64, Progress, TextModel

WARM_UP_REPEATS = 2
BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """How fast one model answers.

    Attributes:
        time_per_answer_ms: Median over repeats, prompt and all answer tokens.
        time_to_first_token_ms: Median over repeats, prompt to its first token.
        time_per_token_p50_ms: Median over all decode steps of all repeats.
        time_per_token_p95_ms: 95th percentile over the same.
        tokens_per_s: Decoded tokens per second, median over repeats.
        prompt_tokens_per_s: Prompt tokens per second, median over repeats.
        speed_ratio: Time per answer of the first model over this one's, paired by repeat, median.
        speed_ratio_interval95: Bootstrap interval of that median, (low, high).
        answer_samples_ms: Time per answer of each repeat.
        first_token_samples_ms: Time to first token of each repeat.
        token_samples_ms: Every decode step, in order.
    """

    time_per_answer_ms: float
    time_to_first_token_ms: float
    time_per_token_p50_ms: float
    time_per_token_p95_ms: float
    tokens_per_s: float
    prompt_tokens_per_s: float
    speed_ratio: float
    speed_ratio_interval95: tuple[float, float]
    answer_samples_ms: tuple[float, ...]
    first_token_samples_ms: tuple[float, ...]
    token_samples_ms: tuple[float, ...]


def time_models(
    models: Mapping[str, TextModel],
    prompts: Mapping[str, Sequence[int]],
    answer_tokens: int,
    decode_tokens: int,
    repeats: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Time models against each other in this process.

    Args:
        models: Name -> model; ratios are to the first.
        prompts: Tokens of the prompt, for each model in its own tokens.
        answer_tokens: Tokens of one answer, at least 1.
        decode_tokens: Decode steps after the first token, for the time per token.
        repeats: Measured repeats, after a warm-up.
        rng: Random generator of the bootstrap.
        progress: Told of each repeat.

    Returns:
        Name -> timing.
    """
    names = list(models)
    steps = max(decode_tokens, answer_tokens - 1)
    first_ms: dict[str, list[float]] = {name: [] for name in names}
    token_ms: dict[str, list[list[float]]] = {name: [] for name in names}
    for repeat in range(-WARM_UP_REPEATS, repeats):
        order = names if repeat % 2 == 0 else names[::-1]
        # All prompts first, then all decoding: the two halves of a pair stand as close in time as they can.
        prefilled = {name: timed_prefill(models[name], prompts[name]) for name in order}
        decoded = {
            name: timed_decode(models[name], prefilled[name][1], prefilled[name][2], len(prompts[name]), steps)
            for name in order
        }
        if repeat < 0:
            continue
        for name in names:
            first_ms[name].append(prefilled[name][0])
            token_ms[name].append(decoded[name])
        if progress:
            progress(1)
    answers = {
        name: np.asarray(first_ms[name]) + np.asarray(token_ms[name])[:, : answer_tokens - 1].sum(1) for name in names
    }
    return {
        name: _summary(first_ms[name], token_ms[name], answers[name], answers[names[0]], len(prompts[name]), rng)
        for name in names
    }


def timed_prefill(model: TextModel, prompt_ids: Sequence[int]) -> tuple[float, int, list[Any]]:
    """Run a prompt to its first token.

    Args:
        model: The model.
        prompt_ids: P tokens.

    Returns:
        ``(milliseconds, first token, present)``.
    """
    start = time.perf_counter()
    ids_1T = np.asarray([prompt_ids], dtype=np.int64)
    positions_1T = np.arange(len(prompt_ids), dtype=np.int64)[None]
    logits_11V, present = model.forward(ids_1T, np.ones_like(ids_1T), positions_1T, [], 1)
    token = int(logits_11V[0, -1].argmax())
    return (time.perf_counter() - start) * 1e3, token, present


def timed_decode(model: TextModel, token: int, past: Sequence[Any], past_tokens: int, steps: int) -> list[float]:
    """Continue greedily, one token at a time.

    Args:
        model: The model.
        token: First token, not in the past yet.
        past: Present of the prompt.
        past_tokens: P.
        steps: Tokens to decode.

    Returns:
        Milliseconds of each step.
    """
    milliseconds = []
    for position in range(past_tokens, past_tokens + steps):
        start = time.perf_counter()
        logits_11V, past = model.forward(
            np.asarray([[token]], dtype=np.int64),
            np.ones((1, position + 1), dtype=np.int64),
            np.asarray([[position]], dtype=np.int64),
            past,
            1,
        )
        token = int(logits_11V[0, -1].argmax())
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return milliseconds


def median_interval(values: Float64, rng: np.random.Generator) -> tuple[float, float, float]:
    """Take a median and its 95 % bootstrap interval.

    Args:
        values: Measurements, (N,).
        rng: Random generator.

    Returns:
        ``(median, low, high)``.
    """
    rows = rng.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.quantile(np.median(values[rows], axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def _summary(
    first: list[float], steps: list[list[float]], answers: Float64, baseline: Float64, prompt: int, rng: Any
) -> Timing:
    first_ms, token_ms = np.asarray(first), np.asarray(steps)
    p50, p95 = np.quantile(token_ms, (0.5, 0.95))
    ratio, low, high = median_interval(baseline / answers, rng)
    return Timing(
        time_per_answer_ms=float(np.median(answers)),
        time_to_first_token_ms=float(np.median(first_ms)),
        time_per_token_p50_ms=float(p50),
        time_per_token_p95_ms=float(p95),
        tokens_per_s=float(np.median(1e3 * token_ms.shape[1] / token_ms.sum(1))),
        prompt_tokens_per_s=float(np.median(1e3 * prompt / first_ms)),
        speed_ratio=ratio,
        speed_ratio_interval95=(low, high),
        answer_samples_ms=tuple(answers.tolist()),
        first_token_samples_ms=tuple(first_ms.tolist()),
        token_samples_ms=tuple(token_ms.ravel().tolist()),
    )

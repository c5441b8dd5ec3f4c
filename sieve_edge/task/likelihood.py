"""Label likelihoods of prompts, in whatever runtime: batches, padding and the shared prefix; numpy only.

Dimension key: N examples, K labels, B batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from sieve_edge.protocols import Float32, Float64, Int64, Progress, TextModel

SHARED_PREFIX_TOKENS = 16
"""A prefix is cached only where all prompts share at least this many tokens."""

MOST_ROWS = 255
"""Rows of one batch: llama.cpp holds 256 sequences, one of which is the shared prefix."""

PREFIX_TOLERANCE = 1e-3
"""Largest difference of a log-likelihood that caching the prefix may make, float32."""


def label_log_likelihoods(
    model: TextModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_tokens: int,
    progress: Progress | None = None,
    share_prefix: bool = True,
) -> Float64:
    """Score every label of every prompt: the sum of the log-likelihoods of the label's tokens.

    Prompts of one length are batched, to at most ``batch_tokens`` tokens, so batches do not depend on the machine. A
    prefix that all prompts share is computed once. There is no padding: between a cached prefix and a prompt it would
    count as distance in a sliding window.

    Args:
        model: Model in any runtime.
        prompts: N token lists.
        answers: K token lists, one for each label.
        batch_tokens: Tokens of one batch.
        progress: Told how many prompts were just scored.
        share_prefix: Whether a shared prefix may be cached.

    Returns:
        Natural log-likelihoods, (N, K).
    """
    shared = shared_prefix(prompts) if share_prefix else 0
    past: list[object] = []
    if shared:
        ids_1T = np.asarray([prompts[0][:shared]], dtype=np.int64)
        _, past = model.forward(ids_1T, np.ones_like(ids_1T), np.arange(shared, dtype=np.int64)[None], [], 1)
    scores_NK = np.zeros((len(prompts), len(answers)))
    for rows in length_batches([len(prompt) - shared for prompt in prompts], batch_tokens, mixed=False):
        tails = [prompts[row][shared:] for row in rows]
        scores_NK[rows] = _score_batch(model, tails, answers, past, shared)
        if progress:
            progress(len(rows))
    return scores_NK


def length_batches(lengths: Sequence[int], batch_tokens: int, *, mixed: bool = True) -> list[list[int]]:
    """Group rows of like length.

    Args:
        lengths: Tokens of each row.
        batch_tokens: Padded tokens of one batch of at most ``MOST_ROWS`` rows; a longer row is a batch of its own.
        mixed: Whether a batch may hold rows of different lengths.

    Returns:
        Row indices of each batch, shortest first.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        fits = bool(batches) and (len(batches[-1]) + 1) * lengths[row] <= batch_tokens
        fits = fits and len(batches[-1]) < MOST_ROWS
        if fits and (mixed or lengths[batches[-1][0]] == lengths[row]):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pad_left(rows: Sequence[Sequence[int]], past_tokens: int) -> tuple[Int64, Int64, Int64]:
    """Pad rows on the left, so that the last token of each stands in the last column.

    Args:
        rows: B token lists.
        past_tokens: Tokens that every row has in its past, all real.

    Returns:
        ``(input_ids (B, T), attention_mask (B, past_tokens + T), position_ids (B, T))``.
    """
    width = max(len(row) for row in rows)
    ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    mask_BT = np.ones((len(rows), past_tokens + width), dtype=np.int64)
    positions_BT = np.full((len(rows), width), past_tokens, dtype=np.int64)
    for index, row in enumerate(rows):
        pad = width - len(row)
        ids_BT[index, pad:] = row
        mask_BT[index, past_tokens : past_tokens + pad] = 0
        positions_BT[index, pad:] += np.arange(len(row))
    return ids_BT, mask_BT, positions_BT


def _score_batch(
    model: TextModel, tails: list[Sequence[int]], answers: Sequence[Sequence[int]], past: list[object], shared: int
) -> Float64:
    batch = len(tails)
    ids_BT, mask_BT, positions_BT = pad_left(tails, shared)
    repeated = model.repeat(past, batch) if past else []
    logits_B1V, present = model.forward(ids_BT, mask_BT, positions_BT, repeated, 1)
    first_BV = logits_B1V[:, -1].astype(np.float64)
    scores_BK = np.stack([log_likelihood(first_BV, np.full(batch, answer[0])) for answer in answers], axis=1)
    for index, answer in enumerate(answers):
        if len(answer) == 1:
            continue
        more_BT = np.tile(np.asarray(answer[:-1], dtype=np.int64), (batch, 1))
        more_mask = np.concatenate([mask_BT, np.ones_like(more_BT)], axis=1)
        more_positions = positions_BT[:, -1:] + 1 + np.arange(more_BT.shape[1])
        logits_BTV, _ = model.forward(more_BT, more_mask, more_positions, present, 0)
        for step, token in enumerate(answer[1:]):
            scores_BK[:, index] += log_likelihood(logits_BTV[:, step].astype(np.float64), np.full(batch, token))
    return scores_BK


def log_likelihood(logits_BV: Float32 | Float64, tokens_B: Int64) -> Float64:
    """Take the log-likelihood of one token per row.

    Args:
        logits_BV: Logits, (B, V).
        tokens_B: Token of each row, (B,).

    Returns:
        Natural log-likelihoods, (B,).
    """
    top_B1 = logits_BV.max(1, keepdims=True)
    normaliser_B = top_B1[:, 0] + np.log(np.exp(logits_BV - top_B1).sum(1))
    picked: Float64 = logits_BV[np.arange(len(tokens_B)), tokens_B] - normaliser_B
    return picked


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with, if they are worth caching.

    Args:
        prompts: Token lists.

    Returns:
        Number of tokens, at least one less than the shortest prompt has; 0 if below ``SHARED_PREFIX_TOKENS``.
    """
    # What the first and the last in lexical order share, all share.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(len(prompt) for prompt in prompts) - 1
    shared = 0
    while shared < limit and first[shared] == last[shared]:
        shared += 1
    return shared if shared >= SHARED_PREFIX_TOKENS else 0


def prefix_and_tails(prompts: Sequence[list[int]], batch_tokens: int) -> tuple[list[int], list[list[list[int]]]]:
    """Split prompts into what all share and batches of the rest.

    Args:
        prompts: Token lists.
        batch_tokens: Tokens of one batch.

    Returns:
        ``(prefix, batches)``; the tails of a batch have one length.
    """
    shared = shared_prefix(prompts)
    batches = length_batches([len(prompt) - shared for prompt in prompts], batch_tokens, mixed=False)
    return prompts[0][:shared], [[prompts[row][shared:] for row in rows] for rows in batches]

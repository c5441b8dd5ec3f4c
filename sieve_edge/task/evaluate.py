"""Scores: label likelihoods, prior correction, balanced accuracy and its intervals; numpy only.

Dimension key: N examples, K labels, B batch, T tokens, S bootstrap samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sieve_edge.protocols import Float32, Float64, Int64, Progress, TextModel

SHARED_PREFIX_TOKENS = 16
"""A prefix is cached only where all prompts share at least this many tokens."""

PREFIX_TOLERANCE = 1e-3
"""Largest difference of a log-likelihood that caching the prefix may make, float32."""

BOOTSTRAP_SAMPLES = 2000
_NEWTON_STEPS = 50


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
    shared = _shared_prefix(prompts) if share_prefix else 0
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
        batch_tokens: Padded tokens of one batch; a longer row is a batch of its own.
        mixed: Whether a batch may hold rows of different lengths.

    Returns:
        Row indices of each batch, shortest first.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        fits = bool(batches) and (len(batches[-1]) + 1) * lengths[row] <= batch_tokens
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


def fit_prior(scores_NK: Float64, labels_N: Int64) -> Float64:
    """Fit one additive bias per label, so that a model's preference for a word does not count as an answer.

    The bias minimises the cross-entropy of the labels, every label weighing the same (Newton's method; convex).

    Args:
        scores_NK: Label log-likelihoods, (N, K).
        labels_N: True labels, (N,).

    Returns:
        Bias to add to the scores, (K,), the first 0.

    Source:
        method.md, section 6.
    """
    classes = scores_NK.shape[1]
    counts_K = np.bincount(labels_N, minlength=classes).clip(min=1)
    weights_N = 1.0 / counts_K[labels_N] / classes
    truth_NK = np.eye(classes)[labels_N]
    bias_K = np.zeros(classes)
    for _ in range(_NEWTON_STEPS):
        probability_NK = _softmax(scores_NK + bias_K)
        gradient_K = (weights_N[:, None] * (probability_NK - truth_NK)).sum(0)
        weighted_NK = weights_N[:, None] * probability_NK
        hessian_KK = np.diag(weighted_NK.sum(0)) - weighted_NK.T @ probability_NK
        step = np.linalg.solve(hessian_KK[1:, 1:] + 1e-9 * np.eye(classes - 1), gradient_K[1:])
        bias_K[1:] -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-10:
            break
    return bias_K


def predict(scores_NK: Float64, prior_K: Float64 | None = None) -> Int64:
    """Choose the most likely label of each example.

    Args:
        scores_NK: Label log-likelihoods, (N, K).
        prior_K: Bias to add, (K,), or None for none.

    Returns:
        Labels, (N,); the first of equals.
    """
    corrected_NK = scores_NK if prior_K is None else scores_NK + prior_K
    predicted_N: Int64 = corrected_NK.argmax(1).astype(np.int64)
    return predicted_N


def balanced_accuracy(predicted_N: Int64, labels_N: Int64, classes: int) -> float:
    """Average the recall of the labels.

    Args:
        predicted_N: Predicted labels, (N,).
        labels_N: True labels, (N,).
        classes: K.

    Returns:
        Mean recall over the labels that occur, in [0, 1]; always answering the majority scores 1 / K.
    """
    return float(_balanced((predicted_N == labels_N)[None], labels_N[None], classes)[0])


def measure(scores_NK: Float64, labels_N: Int64) -> dict[str, float | bool]:
    """Score a model on examples, raw and after prior correction fitted on the same examples.

    Args:
        scores_NK: Label log-likelihoods, (N, K).
        labels_N: True labels, (N,).

    Returns:
        ``raw`` and ``corrected`` balanced accuracy, and whether the corrected predictions ``collapsed``.
    """
    classes = scores_NK.shape[1]
    corrected_N = predict(scores_NK, fit_prior(scores_NK, labels_N))
    return {
        "raw": balanced_accuracy(predict(scores_NK), labels_N, classes),
        "corrected": balanced_accuracy(corrected_N, labels_N, classes),
        "collapsed": collapsed(corrected_N),
    }


def collapsed(predicted_N: Int64) -> bool:
    """Say whether a model gives one and the same answer to everything.

    Args:
        predicted_N: Predicted labels, (N,).

    Returns:
        True if there is only one predicted label.
    """
    return bool((predicted_N == predicted_N[0]).all())


def accuracy_interval(
    predicted_N: Int64, labels_N: Int64, classes: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Bound the balanced accuracy by a 95 % bootstrap interval, resampling within each label.

    Args:
        predicted_N: Predicted labels, (N,).
        labels_N: True labels, (N,).
        classes: K.
        rng: Random generator.

    Returns:
        ``(low, high)``.
    """
    rows_SN = _resample(labels_N, rng)
    samples_S = _balanced((predicted_N == labels_N)[rows_SN], labels_N[rows_SN], classes)
    low, high = np.quantile(samples_S, (0.025, 0.975))
    return float(low), float(high)


def relative_loss(pruned: float, dense: float) -> float:
    """Compare two scores.

    Args:
        pruned: Score of the pruned model.
        dense: Score of the dense model, above 0.

    Returns:
        ``1 - pruned / dense``; negative where pruned is better.

    Source:
        method.md, section 1.
    """
    return 1.0 - pruned / dense


def loss_interval(
    dense_N: Int64, pruned_N: Int64, labels_N: Int64, classes: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Bound the relative loss by a 95 % bootstrap interval, both models on the same resampled examples.

    Args:
        dense_N: Labels that the dense model predicts, (N,).
        pruned_N: Labels that the pruned model predicts, (N,).
        labels_N: True labels, (N,).
        classes: K.
        rng: Random generator.

    Returns:
        ``(low, high)``.
    """
    rows_SN = _resample(labels_N, rng)
    truth_SN = labels_N[rows_SN]
    dense_S = _balanced((dense_N == labels_N)[rows_SN], truth_SN, classes)
    pruned_S = _balanced((pruned_N == labels_N)[rows_SN], truth_SN, classes)
    low, high = np.quantile(1.0 - pruned_S / np.maximum(dense_S, 1e-12), (0.025, 0.975))
    return float(low), float(high)


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


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    # What the first and the last in lexical order share, all share.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(len(prompt) for prompt in prompts) - 1
    shared = 0
    while shared < limit and first[shared] == last[shared]:
        shared += 1
    return shared if shared >= SHARED_PREFIX_TOKENS else 0


def _softmax(scores_NK: Float64) -> Float64:
    exponentials = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    probability: Float64 = exponentials / exponentials.sum(1, keepdims=True)
    return probability


def _balanced(correct_SN: NDArray[np.bool_], labels_SN: Int64, classes: int) -> Float64:
    recalls = []
    for label in range(classes):
        mine_SN = labels_SN == label
        total_S = mine_SN.sum(1)
        if total_S.min() > 0:
            recalls.append((correct_SN & mine_SN).sum(1) / total_S)
    mean: Float64 = np.mean(recalls, axis=0)
    return mean


def _resample(labels_N: Int64, rng: np.random.Generator) -> Int64:
    groups = [np.flatnonzero(labels_N == label) for label in np.unique(labels_N)]
    drawn = [group[rng.integers(0, len(group), (BOOTSTRAP_SAMPLES, len(group)))] for group in groups]
    return np.concatenate(drawn, axis=1)

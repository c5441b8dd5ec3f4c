"""Scores: prior correction, balanced accuracy and its intervals; numpy only.

Dimension key: N examples, K labels, S bootstrap samples.
"""

import numpy as np
from numpy.typing import NDArray

from sieve_edge.protocols import Float64, Int64

BOOTSTRAP_SAMPLES = 2000
_NEWTON_STEPS = 50


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
    dense_N: Int64,
    pruned_N: Int64,
    labels_N: Int64,
    classes: int,
    rng: np.random.Generator,
    quantiles: tuple[float, float] = (0.025, 0.975),
) -> tuple[float, float]:
    """Bound the relative loss by a bootstrap interval, both models on the same resampled examples.

    Args:
        dense_N: Labels that the dense model predicts, (N,).
        pruned_N: Labels that the pruned model predicts, (N,).
        labels_N: True labels, (N,).
        classes: K.
        rng: Random generator.
        quantiles: Ends of the interval; 95 % by default.

    Returns:
        ``(low, high)``.
    """
    rows_SN = _resample(labels_N, rng)
    truth_SN = labels_N[rows_SN]
    dense_S = _balanced((dense_N == labels_N)[rows_SN], truth_SN, classes)
    pruned_S = _balanced((pruned_N == labels_N)[rows_SN], truth_SN, classes)
    low, high = np.quantile(1.0 - pruned_S / np.maximum(dense_S, 1e-12), quantiles)
    return float(low), float(high)


def hopeless(
    dense_NK: Float64, pruned_NK: Float64, labels_N: Int64, tolerance: float, confidence: float, seed: int = 0
) -> bool:
    """Say whether a candidate is already shown to lose too much, by a paired bootstrap test.

    Args:
        dense_NK: Label log-likelihoods of the dense model, (N, K).
        pruned_NK: Those of the candidate on the same examples, (N, K).
        labels_N: True labels, (N,).
        tolerance: Allowed relative loss.
        confidence: With which the loss must exceed it.
        seed: Seed of the bootstrap.

    Returns:
        True if the lower end of the one-sided interval of the loss is above the tolerance.
    """
    dense_N, pruned_N = (predict(each_NK, fit_prior(each_NK, labels_N)) for each_NK in (dense_NK, pruned_NK))
    quantiles = (1.0 - confidence, 1.0)
    rng = np.random.default_rng(seed)
    low, _ = loss_interval(dense_N, pruned_N, labels_N, dense_NK.shape[1], rng, quantiles)
    return low > tolerance


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

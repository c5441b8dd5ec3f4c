"""Scores: prior correction, grades of answers, and intervals of scores and losses; numpy only.

Dimension key: N examples, K labels, S bootstrap samples.
"""

from dataclasses import dataclass, replace

import numpy as np

from sieve_edge.errors import JudgeError
from sieve_edge.protocols import Float64, Int64

BOOTSTRAP_SAMPLES = 2000
MAX_UNJUDGED = 0.1
"""Fraction of a model's answers that may go without a verdict; more, and its score says too little."""

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


@dataclass(frozen=True)
class Grades:
    """What answers are worth.

    Attributes:
        credits_N: Worth of each answer, in [0, 1], (N,); not-a-number where there is no verdict, which counts in none.
        groups_N: Groups whose means count alike, (N,): the true labels for balanced accuracy, else all 0.
        collapsed: Whether one and the same answer was given to everything.
    """

    credits_N: Float64
    groups_N: Int64
    collapsed: bool

    @property
    def score(self) -> float:
        """Mean over the groups of their mean worth, in [0, 1]; 0 where nothing has a verdict."""
        return float(_grouped(self.credits_N[None], self.groups_N[None])[0])

    @property
    def unjudged(self) -> float:
        """Fraction of the answers without a verdict."""
        return float(np.isnan(self.credits_N).mean())


def grade_labels(scores_NK: Float64, labels_N: Int64, prior_K: Float64) -> Grades:
    """Grade label log-likelihoods: the score is balanced accuracy, so always answering the majority scores 1 / K.

    Args:
        scores_NK: Label log-likelihoods, (N, K).
        labels_N: True labels, (N,).
        prior_K: Bias to add, (K,); (0,) for none.

    Returns:
        The grades.
    """
    predicted_N = predict(scores_NK, prior_K if len(prior_K) else None)
    collapsed = bool((predicted_N == predicted_N[0]).all())
    return Grades((predicted_N == labels_N).astype(np.float64), labels_N, collapsed)


def score_interval(grades: Grades, rng: np.random.Generator) -> tuple[float, float]:
    """Bound a score by a 95 % bootstrap interval, resampling within each group.

    Args:
        grades: What answers are worth.
        rng: Random generator.

    Returns:
        ``(low, high)``.
    """
    rows_SN = _resample(grades.groups_N, rng)
    samples_S = _grouped(grades.credits_N[rows_SN], grades.groups_N[rows_SN])
    low, high = np.quantile(samples_S, (0.025, 0.975))
    return float(low), float(high)


def relative_loss(pruned: float, dense: float) -> float:
    """Compare two scores.

    Args:
        pruned: Score of the pruned model.
        dense: Score of the dense model.

    Returns:
        ``1 - pruned / dense``; negative where pruned is better, 0 where the dense score is 0 and nothing can be lost.

    Source:
        method.md, section 1.
    """
    return 1.0 - pruned / dense if dense > 0 else 0.0


def graded_loss(dense: Grades, pruned: Grades) -> float:
    """Compare the answers of two models, on the examples for which both have a verdict.

    Args:
        dense: Grades of the dense model's answers.
        pruned: Grades of the pruned model's, to the same examples.

    Returns:
        Relative loss; see ``relative_loss``.
    """
    dense, pruned = _judged_both(dense, pruned)
    return relative_loss(pruned.score, dense.score)


def loss_interval(
    dense: Grades, pruned: Grades, rng: np.random.Generator, quantiles: tuple[float, float] = (0.025, 0.975)
) -> tuple[float, float]:
    """Bound the relative loss by a bootstrap interval, both models on the same resampled examples.

    Args:
        dense: Grades of the dense model's answers.
        pruned: Grades of the pruned model's, to the same examples.
        rng: Random generator.
        quantiles: Ends of the interval; 95 % by default.

    Returns:
        ``(low, high)``.
    """
    dense, pruned = _judged_both(dense, pruned)
    rows_SN = _resample(dense.groups_N, rng)
    groups_SN = dense.groups_N[rows_SN]
    dense_S, pruned_S = (_grouped(grades.credits_N[rows_SN], groups_SN) for grades in (dense, pruned))
    low, high = np.quantile(1.0 - pruned_S / np.maximum(dense_S, 1e-12), quantiles)
    return float(low), float(high)


def hopeless(dense: Grades, pruned: Grades, tolerance: float, confidence: float, seed: int = 0) -> bool:
    """Say whether a candidate is already shown to lose too much, by a paired bootstrap test.

    Args:
        dense: Grades of the dense model's answers.
        pruned: Grades of the candidate's, to the same examples.
        tolerance: Allowed relative loss.
        confidence: With which the loss must exceed it.
        seed: Seed of the bootstrap.

    Returns:
        True if the lower end of the one-sided interval of the loss is above the tolerance; never where the dense
        model scores 0.
    """
    if dense.score <= 0.0:
        return False
    low, _ = loss_interval(dense, pruned, np.random.default_rng(seed), (1.0 - confidence, 1.0))
    return low > tolerance


def _softmax(scores_NK: Float64) -> Float64:
    exponentials = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    probability: Float64 = exponentials / exponentials.sum(1, keepdims=True)
    return probability


def _grouped(credits_SN: Float64, groups_SN: Int64) -> Float64:
    means = []
    for group in np.unique(groups_SN[0]):
        mine_SN = (groups_SN == group) & ~np.isnan(credits_SN)
        means.append(np.where(mine_SN, credits_SN, 0.0).sum(1) / np.maximum(mine_SN.sum(1), 1))
    mean: Float64 = np.mean(means, axis=0)
    return mean


def _judged_both(dense: Grades, pruned: Grades) -> tuple[Grades, Grades]:
    there_N = ~np.isnan(dense.credits_N) & ~np.isnan(pruned.credits_N)
    if there_N.all():
        return dense, pruned
    if not there_N.any():
        raise JudgeError(
            "no answer has a verdict for both models, so they cannot be compared; look at the task's judge"
        )
    both = [
        replace(grades, credits_N=grades.credits_N[there_N], groups_N=grades.groups_N[there_N])
        for grades in (dense, pruned)
    ]
    return both[0], both[1]


def _resample(groups_N: Int64, rng: np.random.Generator) -> Int64:
    groups = [np.flatnonzero(groups_N == group) for group in np.unique(groups_N)]
    drawn = [group[rng.integers(0, len(group), (BOOTSTRAP_SAMPLES, len(group)))] for group in groups]
    return np.concatenate(drawn, axis=1)

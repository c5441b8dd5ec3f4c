"""Scores, intervals, prior correction, batches and bisection."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.search.uniform import bisect
from sieve_edge.task.evaluate import (
    Grades,
    fit_prior,
    grade_labels,
    graded_loss,
    loss_interval,
    predict,
    relative_loss,
    score_interval,
)
from sieve_edge.task.likelihood import length_batches, pad_left

labelled = st.integers(0, 10_000).map(
    lambda seed: (
        np.random.default_rng(seed).normal(size=(60, 3)) * 2,
        np.random.default_rng(seed + 1).permutation(np.arange(60) % 3),
    )
)


@given(labelled, st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_prior_correction_undoes_any_shift_of_the_labels(data, shift):
    scores, labels = data
    plain = predict(scores, fit_prior(scores, labels))
    shifted = scores + np.asarray(shift)
    assert (predict(shifted, fit_prior(shifted, labels)) == plain).mean() >= 0.98


@given(labelled)
def test_prior_makes_the_mean_probability_match_the_labels(data):
    scores, labels = data
    corrected = scores + fit_prior(scores, labels)
    probability = np.exp(corrected) / np.exp(corrected).sum(1, keepdims=True)
    assert probability.mean(0) == pytest.approx(np.full(3, 1 / 3), abs=1e-6)


@given(labelled)
def test_always_the_majority_scores_one_over_classes(data):
    _, labels = data
    grades = grade_labels(np.tile([0.0, 1.0, 0.0], (len(labels), 1)), labels, np.zeros(0))
    assert grades.score == pytest.approx(1 / 3)
    assert grades.collapsed


@given(labelled)
def test_intervals_hold_the_estimate_and_a_model_has_no_loss_against_itself(data):
    scores, labels = data
    grades = grade_labels(scores, labels, np.zeros(0))
    rng = np.random.default_rng(0)
    low, high = score_interval(grades, rng)
    assert low <= grades.score <= high
    if grades.score > 0.2:
        assert loss_interval(grades, grades, rng) == (0.0, 0.0)


@given(st.integers(0, 1000))
def test_answers_without_a_verdict_count_in_neither_model(seed):
    rng = np.random.default_rng(seed)
    dense, pruned = rng.random(40) + 0.1, rng.random(40)
    groups = np.zeros(40, dtype=np.int64)
    silent = np.where(np.arange(40) < 10, np.nan, pruned)
    loss = graded_loss(Grades(dense, groups, False), Grades(silent, groups, False))
    assert loss == pytest.approx(1 - pruned[10:].mean() / dense[10:].mean())


def test_loss_is_relative():
    assert relative_loss(0.76, 0.8) == pytest.approx(0.05)
    assert relative_loss(0.84, 0.8) < 0


@given(st.lists(st.integers(1, 90), min_size=1, max_size=80), st.integers(16, 300))
def test_batches_hold_every_row_once_and_stay_within_their_tokens(lengths, limit):
    batches = length_batches(lengths, limit)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= limit
    for batch in length_batches(lengths, limit, mixed=False):
        assert len({lengths[row] for row in batch}) == 1


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(0, 20))
def test_left_padding_keeps_tokens_positions_and_mask_together(rows, past):
    ids, mask, positions = pad_left(rows, past)
    assert mask[:, :past].all()
    for index, row in enumerate(rows):
        assert ids[index, len(ids[index]) - len(row) :].tolist() == row
        assert mask[index, past:].sum() == len(row)
        assert positions[index, len(ids[index]) - len(row) :].tolist() == list(range(past, past + len(row)))


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12, unique=True), st.floats(0.0, 1.1), st.floats(0.01, 0.2))
def test_bisection_returns_the_smallest_feasible_factor_it_scored(levels, truth, resolution):
    scored = {}

    def feasible(factor):
        assert factor not in scored, "scored twice"
        scored[factor] = factor >= truth
        return scored[factor]

    found = bisect(levels, resolution, feasible)
    assert found == min([factor for factor, good in scored.items() if good], default=1.0)
    if not any(scored.values()):
        assert found == 1.0
    below = [factor for factor, good in scored.items() if not good]
    if below and truth <= 1.0:
        assert found - max(below) <= resolution + 1e-4

"""Refit's regression: what must hold whatever the data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.model.refit import Sums, lost, ridge


def data(seed, tokens=40, rank=4, features=6):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, rank), (tokens, features), (rank, features))
    )


def sums(projected_NR, output_NO):
    return Sums(projected_NR.T @ projected_NR, projected_NR.T @ output_NO, float(output_NO.square().sum()))


@given(st.integers(0, 999))
def test_the_loss_from_sums_is_the_loss_on_the_data(seed):
    projected, output, up = data(seed)
    expected = float((output - projected @ up).square().sum() / output.square().sum())
    assert lost(sums(projected, output), up) == pytest.approx(expected)


@given(st.integers(0, 999))
def test_without_ridge_no_factor_fits_better(seed):
    projected, output, up = data(seed)
    found = ridge(sums(projected, output), up, 0.0)
    assert found == pytest.approx(torch.linalg.lstsq(projected, output).solution, abs=1e-8)


@given(st.integers(0, 999))
def test_more_ridge_stays_nearer_to_the_start(seed):
    projected, output, start = data(seed)
    scale = sums(projected, output).gram_RR.diagonal().sqrt()[:, None]
    distances = [
        float(((ridge(sums(projected, output), start, strength) - start) * scale).norm())
        for strength in (0.0, 0.1, 1.0, 10.0, 1e9)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-6


def test_what_no_token_reaches_does_not_move():
    projected, output, start = data(0)
    projected[:, 1] = 0.0
    found = ridge(sums(projected, output), start, 0.1)
    assert bool(torch.isfinite(found).all())
    assert found[1] == pytest.approx(start[1])

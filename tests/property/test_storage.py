"""Pivoted storage, ranks and levels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.levels import factored_params, kept_params, rank_for, ranks_at
from sieve_edge.model.pivots import MAX_COEFFICIENT, pivot
from sieve_edge.search.space import make_space

storages = st.sampled_from(["pair", "pivoted"])


@given(st.integers(2, 12), st.integers(2, 12), st.data(), st.sampled_from(["input", "output"]), st.integers(0, 9999))
def test_pivoted_storage_equals_the_plain_pair(out_features, in_features, data, side, seed):
    rank = data.draw(st.integers(1, min(out_features, in_features) - 1))
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, in_features, generator=generator, dtype=torch.float64)
    up = torch.randn(out_features, rank, generator=generator, dtype=torch.float64)
    pivoted = pivot(down, up, side)
    if pivoted is None:
        return
    assert pivoted.largest <= MAX_COEFFICIENT
    module = FactoredLinear(in_features, (out_features,), rank, f"pivoted_{side}", pivoted.start).double()
    whole = "up.weight" if side == "input" else "down.weight"
    module.load_state_dict({"coef.weight": pivoted.coef, whole: pivoted.other})
    hidden = torch.randn(3, in_features, generator=generator, dtype=torch.float64)
    expected = hidden @ down.T @ up.T
    assert torch.allclose(module(hidden), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    stored = sum(parameter.numel() for parameter in module.parameters())
    assert stored == factored_params(rank, out_features, in_features, "pivoted")


def test_pivots_that_do_not_exist_are_refused():
    down = torch.zeros(2, 6, dtype=torch.float64)
    down[0, 0], down[1, 5] = 1.0, 1.0  # no two neighbouring columns are independent
    assert pivot(down, torch.eye(4, 2, dtype=torch.float64), "input") is None


@given(st.floats(0.01, 1.0), st.integers(2, 400), st.integers(2, 400), storages, st.integers(1, 64))
def test_ranks_keep_at_most_the_factor_and_never_store_more_than_dense(
    factor, out_features, in_features, storage, multiple
):
    rank = rank_for(factor, out_features, in_features, storage, multiple)
    if rank is None:
        smallest = factored_params(multiple, out_features, in_features, storage)
        largest_below = rank_for(min(factor, 0.99), out_features, in_features, storage, 1)
        assert (
            factor > 0.98
            or multiple >= min(out_features, in_features)
            or largest_below is None
            or (smallest >= out_features * in_features)
        )
        return
    assert rank % multiple == 0
    assert rank > 0
    stored = factored_params(rank, out_features, in_features, storage)
    assert stored < out_features * in_features
    if rank > multiple:
        assert stored <= factor * out_features * in_features + 1e-6


@given(st.integers(8, 300), st.integers(8, 300), st.floats(0.2, 0.95))
def test_pivoted_storage_keeps_more_rank_at_equal_parameters(out_features, in_features, factor):
    pair = rank_for(factor, out_features, in_features, "pair", 1)
    pivoted = rank_for(factor, out_features, in_features, "pivoted", 1)
    assert pair is not None
    assert pivoted is None or pivoted >= pair


def spec(name, out_features, in_features):
    return MatrixSpec(name, (f"m.{name}",), (out_features,), out_features, in_features, "pre")


def test_levels_that_coincide_after_rounding_are_merged():
    specs = [spec("0.qkv", 96, 64), spec("0.o", 64, 64)]
    grid = (1.0, 0.9, 0.5, 0.45, 0.1, 0.05)
    space = make_space(specs, grid, "pair", 16, other_params=0)
    for spec_levels in space.levels:
        ranks = [level.rank for level in spec_levels]
        assert len(set(ranks)) == len(ranks)
        assert [level.params for level in spec_levels] == sorted((level.params for level in spec_levels), reverse=True)
    assert [level.factor for level in space.levels[0]] == [1.0, 0.9, 0.05]


def test_kept_params_of_an_unpruned_plan_is_dense():
    specs = [spec("0.qkv", 96, 64), spec("0.o", 64, 64)]
    assert kept_params(specs, ranks_at(specs, 1.0, "pivoted", 16), "pivoted") == 96 * 64 + 64 * 64


@pytest.mark.parametrize("factor", [0.0, -0.1, 1.5])
def test_a_factor_outside_its_range_is_refused(factor):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        rank_for(factor, 8, 8, "pair", 1)

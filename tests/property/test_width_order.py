"""Width pruning's order and factors: what goes is what costs least, and what stays is fitted as well as can be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.learn.widths import keep_inputs, keep_order

SEEDS = st.integers(0, 10_000)


def problem(seed, inputs=12, outputs=5):
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    rows = torch.randn(3 * inputs, inputs, generator=generator, dtype=torch.float64)
    mixed = rows @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    root = torch.randn(outputs, outputs, generator=generator, dtype=torch.float64)
    gram_II = mixed.T @ mixed / len(rows)
    metric_OO = root @ root.T + 0.1 * torch.eye(outputs, dtype=torch.float64)
    return weight_OI, gram_II, metric_OO


def cost_without(weight_OI, gram_II, metric_OO, kept):
    """Loss of the best weights on some inputs, solved from scratch."""
    fitted = torch.linalg.solve(gram_II[kept][:, kept], gram_II[kept] @ weight_OI.T)
    missing = weight_OI.clone()
    missing[:, kept] -= fitted.T
    return float((metric_OO * (missing @ gram_II @ missing.T)).sum())


@given(SEEDS, st.sampled_from([1, 2, 3]))
def test_every_rank_reads_so_many_inputs_in_whole_units(seed, unit):
    weight_OI, gram_II, metric_OO = problem(seed)
    factors = keep_inputs(weight_OI, gram_II, weight_OI.T @ metric_OO @ weight_OI, unit)
    for rank in range(unit, 13, unit):
        kept = (factors.down_RI[:rank] != 0.0).any(0).nonzero().flatten()
        assert len(kept) == rank
        assert sorted(set((kept // unit).tolist())) == (kept[::unit] // unit).tolist()


@given(SEEDS, st.sampled_from([1, 3]))
def test_the_kept_inputs_are_fitted_as_well_as_can_be_and_the_loss_is_known(seed, unit):
    weight_OI, gram_II, metric_OO = problem(seed)
    moment_II = weight_OI.T @ metric_OO @ weight_OI
    factors = keep_inputs(weight_OI, gram_II, moment_II, unit)
    damped = gram_II + 1e-3 * gram_II.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    for rank in range(unit, 12, unit):
        kept = (factors.down_RI[:rank] != 0.0).any(0).nonzero().flatten()
        best = cost_without(weight_OI, damped, metric_OO, kept)
        missing = weight_OI - factors.up_RO[:rank].T @ factors.down_RI[:rank]
        assert float((metric_OO * (missing @ damped @ missing.T)).sum()) == pytest.approx(best, rel=1e-6)
        assert float(factors.error_R[rank]) * factors.energy == pytest.approx(best, rel=1e-6, abs=1e-9 * factors.energy)
    torch.testing.assert_close(factors.up_RO.T @ factors.down_RI, weight_OI)


@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_what_goes_next_is_what_costs_least(seed, unit):
    weight_OI, gram_II, metric_OO = problem(seed)
    order_I = keep_order(gram_II, weight_OI.T @ metric_OO @ weight_OI, unit)
    assert sorted(order_I.tolist()) == list(range(12))
    for kept_units in range(12 // unit, 1, -1):
        kept = order_I[: kept_units * unit].view(-1, unit)
        costs = [
            cost_without(weight_OI, gram_II, metric_OO, torch.cat([kept[:index], kept[index + 1 :]]).flatten())
            for index in range(kept_units)
        ]
        assert costs[-1] <= min(costs) * (1 + 1e-6)

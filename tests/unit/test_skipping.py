"""Genes of blocks that are left out, in the search's parts."""

import numpy as np
import pytest

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.search.budgets import params_budget
from sieve_edge.search.fitness import fitness
from sieve_edge.search.space import make_space
from sieve_edge.search.swaps import offspring, swapped

SHAPES = (("qkv", 96, 64, "pre"), ("o", 64, 64, "post"), ("gate_up", 128, 64, "pre"), ("down", 64, 128, "post"))
SPECS = [
    MatrixSpec(f"{layer}.{kind}", (f"{layer}.{kind}",), (outputs,), outputs, inputs, side)
    for layer in (0, 1)
    for kind, outputs, inputs, side in SHAPES
]
SPACE = make_space(SPECS, (1.0, 0.75, 0.5, 0.25), "pivoted", 4, 1000, allow_skip=True)
# The first attention block and the second MLP block are left out.
PLAN = (0, 0, 1, 2, 1, 1, 0, 0, 1, 0, 0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_swaps_leave_skipped_blocks_alone_and_keep_the_budget(seed):
    kept = sum(SPACE.kept(spec, SPACE.ranks(PLAN)) * spec.params for spec in SPECS) / SPACE.linears
    budget = params_budget("size", "pivoted", 1.0 / SPACE.linears, 0.0, kept, "of the linears")
    damage = tuple(tuple(map(float, range(len(levels) + 1))) for levels in SPACE.levels)
    children = offspring(PLAN, SPACE, [budget], damage, 8, np.random.default_rng(seed))
    assert children
    for child in children:
        assert SPACE.skipped(child) == SPACE.skipped(PLAN) == {0, 1, 6, 7}
        assert SPACE.ranks(child) != SPACE.ranks(PLAN), "a gene that nobody reads is no swap"
        assert budget.met(budget.cost(SPACE.specs, SPACE.ranks(child)))


def test_a_plan_that_skips_everything_has_nothing_to_swap():
    nothing = (*(0 for _ in SPECS), 1, 1, 1, 1)
    assert swapped(nothing, SPACE, [], [], np.random.default_rng(0)) == nothing


def test_a_model_of_which_nothing_is_left_is_worth_nothing():
    assert fitness(0.0, 0.5, 0.75, 50.0) == 0.0
    assert 0.0 < fitness(0.05, 0.5, 0.75, 50.0) < fitness(0.05, 0.75, 0.75, 50.0)

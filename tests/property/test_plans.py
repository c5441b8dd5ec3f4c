"""Operators, fitness, knapsack and swaps: what must hold whatever the chromosome."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.search.budgets import first_exceeded, params_budget
from sieve_edge.search.fitness import fitness
from sieve_edge.search.genetic import converged
from sieve_edge.search.operators import crossover, mutate, random_chromosome, roulette
from sieve_edge.search.space import make_space, plan_id
from sieve_edge.search.surrogate import corrected, corrections, solve
from sieve_edge.search.swaps import offspring

GRID = (1.0, 0.75, 0.5, 0.25)


def spec(layer, kind, out_features, in_features, side):
    return MatrixSpec(f"{layer}.{kind}", (f"layers.{layer}.{kind}",), (out_features,), out_features, in_features, side)


def toy_space(layers=1, allow_skip=False):
    specs = []
    for layer in range(layers):
        specs += [spec(layer, "qkv", 96, 64, "pre"), spec(layer, "o", 64, 64, "post")]
        specs += [spec(layer, "gate_up", 128, 64, "pre"), spec(layer, "down", 64, 128, "post")]
    return make_space(specs, GRID, "pivoted", 4, other_params=1000, allow_skip=allow_skip)


def toy_damage(space, seed):
    """Damage that rises with pruning, as the discarded energy does; last of each row: leaving the matrix out."""
    rng = np.random.default_rng(seed)
    return tuple(tuple(np.cumsum([0.0, *rng.random(len(levels))]).tolist()) for levels in space.levels)


seeds = st.integers(0, 10_000)


@given(seeds, st.floats(0.0, 1.0))
def test_each_gene_of_a_child_comes_from_a_parent_at_the_same_place(seed, probability):
    rng = np.random.default_rng(seed)
    counts = tuple(rng.integers(2, 6, 8))
    parents = [random_chromosome(counts, rng) for _ in range(2)]
    children = crossover(*parents, probability, rng)
    for genes in zip(*parents, *children, strict=True):
        assert sorted(genes[:2]) == sorted(genes[2:])


@given(seeds, st.floats(0.0, 1.0))
def test_a_mutation_moves_genes_one_step_inside_the_grid(seed, probability):
    rng = np.random.default_rng(seed)
    counts = tuple(int(count) for count in rng.integers(1, 6, 12))
    before = random_chromosome(counts, rng)
    after = mutate(before, counts, probability, rng)
    for old, new, count in zip(before, after, counts, strict=True):
        assert 0 <= new < count
        assert abs(new - old) <= 1
    if probability == 0.0:
        assert after == before


def test_a_mutation_that_is_certain_moves_every_gene_that_can_move():
    counts = (2, 3, 4, 1)
    moved = mutate((0, 2, 1, 0), counts, 1.0, np.random.default_rng(0))
    assert [abs(new - old) for new, old in zip(moved, (0, 2, 1, 0), strict=True)] == [1, 1, 1, 0]


def test_the_roulette_draws_in_proportion_to_fitness():
    rng = np.random.default_rng(0)
    drawn = np.bincount([roulette([1.0, 3.0, 0.0], rng) for _ in range(4000)], minlength=3) / 4000
    assert drawn == pytest.approx([0.25, 0.75, 0.0], abs=0.03)
    assert {roulette([0.0, 0.0], rng) for _ in range(50)} == {0, 1}


@given(st.floats(0.05, 0.9), st.floats(0.01, 0.09), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_fitness_rises_as_parameters_fall_and_falls_with_accuracy_only_below_what_is_needed(
    kept, less, accuracy, needed
):
    assert fitness(kept - less / 2, accuracy, needed, 50.0) > fitness(kept, accuracy, needed, 50.0)
    worse = fitness(kept, accuracy - 0.01, needed, 50.0)
    if accuracy - 0.01 >= needed:
        assert worse == fitness(kept, accuracy, needed, 50.0)
    elif accuracy <= needed:
        assert worse < fitness(kept, accuracy, needed, 50.0)


def test_evolution_stops_when_the_best_fitness_stands_still():
    assert not converged([1.0] * 10, 10, 0.05), "ten generations back there must be one"
    assert converged([1.0] * 11, 10, 0.05)
    assert not converged([1.0] * 10 + [1.06], 10, 0.05)


@given(seeds, st.floats(0.15, 1.0))
def test_the_knapsack_finds_the_plan_of_least_damage_that_fits(seed, size):
    space = toy_space()
    damage = toy_damage(space, seed)
    budget = params_budget("max_params", "pivoted", 1.0, 1000.0, 1000.0 + size * space.linears, "parameters")
    found = solve(space, damage, [budget])
    fitting = [
        genes
        for genes in itertools.product(*(range(count) for count in space.gene_levels))
        if not first_exceeded(space.specs, [budget], space.ranks(genes))
    ]
    if found is None:
        assert not fitting
        return
    assert not first_exceeded(space.specs, [budget], space.ranks(found))

    def total(genes):
        return sum(damage[index][gene] for index, gene in enumerate(genes))

    # HiGHS stops within a relative gap of a thousandth.
    assert total(found) <= min(map(total, fitting)) * 1.001 + 1e-9


def test_a_skipped_block_costs_nothing_and_damages_most():
    space = toy_space(layers=2, allow_skip=True)
    assert space.blocks == ((0, 1), (2, 3), (4, 5), (6, 7))
    cheap = tuple(
        (0.0, *([5.0] * (len(levels) - 1)), 0.1 if index < 2 else 50.0) for index, levels in enumerate(space.levels)
    )
    budget = params_budget("size", "pivoted", 1 / space.linears, 0.0, 0.9, "of the linears")
    ranks = space.ranks(solve(space, cheap, [budget]))
    assert [name for name, rank in ranks.items() if rank == 0] == ["0.qkv", "0.o"]
    assert budget.cost(space.specs, ranks) <= 0.9


@given(seeds)
def test_swaps_keep_the_budget_and_change_the_plan(seed):
    space = toy_space(layers=2)
    damage = toy_damage(space, seed)
    budget = params_budget("size", "pivoted", 1 / space.linears, 0.0, 0.6, "of the linears")
    plan = solve(space, damage, [budget])
    children = offspring(plan, space, [budget], damage, 4, np.random.default_rng(seed))
    assert children == offspring(plan, space, [budget], damage, 4, np.random.default_rng(seed))
    assert len(set(children)) == len(children)
    for child in children:
        assert child != plan
        assert budget.met(budget.cost(space.specs, space.ranks(child)))


def test_damage_is_left_alone_where_measured_divergences_agree_and_corrected_where_they_do_not():
    space = toy_space(layers=3)
    damage = toy_damage(space, 0)
    index = {item.name: number for number, item in enumerate(space.specs)}
    agreeing = {(index[name], 1): 0.01 * damage[index[name]][1] for name in ("0.o", "2.o", "0.down", "2.down")}
    assert corrections(space, damage, agreeing) == [1.0] * len(space.specs)
    off = agreeing | {(index["0.down"], 1): 0.16 * damage[index["0.down"]][1]}
    factors = dict(zip(index, corrections(space, damage, off), strict=True))
    assert factors["0.down"] == pytest.approx(16.0)
    assert factors["1.down"] == pytest.approx(4.0), "halfway, in logarithms"
    assert factors["2.down"] == pytest.approx(1.0)
    assert {value for name, value in factors.items() if not name.endswith("down")} == {1.0}
    table = corrected(damage, list(factors.values()))
    assert table[index["0.down"]][2] == pytest.approx(16.0 * damage[index["0.down"]][2])


def test_equal_plans_have_one_name_and_others_another():
    space = toy_space()
    plan = space.ranks((1, 0, 2, 0))
    assert plan_id(plan) == plan_id(dict(reversed(plan.items())))
    assert plan_id(plan) != plan_id(space.ranks((1, 0, 1, 0)))

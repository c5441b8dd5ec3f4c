"""Budgets: costs add up, times come from a table, and a limit that is missed is told in one clear line."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.device.times import DENSE, FEWER_INPUTS, FEWER_OUTPUTS, TimedMatrix, TimeTable, make_table
from sieve_edge.errors import ArtifactError, LimitMissed
from sieve_edge.model.levels import kept_params
from sieve_edge.recipe import SearchRecipe
from sieve_edge.search.acceptance import Acceptance, Verdict
from sieve_edge.search.assemble import search_budgets
from sieve_edge.search.budgets import first_exceeded, shown, time_budget, timed_matrices
from sieve_edge.search.candidates import Scored
from sieve_edge.search.result import choose
from sieve_edge.search.space import make_space
from sieve_edge.search.surrogate import solve
from sieve_edge.search.times import space_matrices

GRID = (1.0, 0.75, 0.5, 0.25)
OTHER = 5000
LIMITS = {
    "max_params": ("parameters", 5_000),
    "max_size_mib": ("MiB", 0.01),
    "max_time_per_answer_ms": ("ms", 0.5),
    "max_time_per_token_ms": ("ms", 0.05),
}


def spec(layer, kind, parts, in_features, side):
    return MatrixSpec(f"{layer}.{kind}", ("a",) * len(parts), parts, sum(parts), in_features, side)


def toy_space(layers=2, storage="pivoted", skip=False):
    specs = []
    for layer in range(layers):
        specs += [spec(layer, "qkv", (64, 16, 16), 64, "pre"), spec(layer, "o", (64,), 64, "post")]
        specs += [spec(layer, "gate_up", (128, 128), 64, "pre"), spec(layer, "down", (64,), 128, "post")]
    if storage == "width":
        # Four key/value heads, and single channels.
        specs = [
            replace(spec, source=source, unit=16 if spec.kind == "o" else 1)
            for source, spec in zip(specs[::2], specs[1::2], strict=True)
        ]
    return make_space(specs, GRID, storage, 4, OTHER, allow_skip=skip)


def toy_table(space):
    """A prompt costs a thousandth of a millisecond for each parameter, a step a tenth of that."""

    def milliseconds(matrix):
        shape = matrix.multiplied()
        if shape is None:
            params = matrix.rank * (sum(matrix.part_features) + matrix.in_features)
        else:
            params = sum(shape[0]) * shape[1]
        return params * 1e-3, params * 1e-4

    times = {matrix: milliseconds(matrix) for matrix in space_matrices(space)}
    dense = (space.linears * 1e-3 + 7.0, space.linears * 1e-4 + 2.0)
    counts = Counter(matrix for item in space.specs for matrix in timed_matrices(item, None, space.storage))
    return make_table(times, dense, counts, {"processor": "toy"}, 1, "CPUExecutionProvider", "F32", 50)


def uniform(space, factor):
    return space.ranks(space.uniform(factor))


def every_budget(space, answer_tokens=3, **limits):
    return search_budgets(space, SearchRecipe(**limits), None, toy_table(space), answer_tokens)


def test_no_limit_is_no_budget():
    assert search_budgets(toy_space(), SearchRecipe()) == []


@pytest.mark.parametrize("storage", ["pair", "pivoted", "width"])
def test_costs_add_up(storage):
    space = toy_space(storage=storage)
    generous = dict.fromkeys(LIMITS, 10**9)
    budgets = {budget.name: budget for budget in every_budget(space, **generous)}
    assert list(budgets) == list(LIMITS)
    for factor in GRID:
        ranks = uniform(space, factor)
        params = OTHER + kept_params(space.specs, ranks, storage)
        assert budgets["max_params"].cost(space.specs, ranks) == params
        assert budgets["max_size_mib"].cost(space.specs, ranks) == pytest.approx(4 * params / 2**20)
        multiplied = sum(
            item.params if ranks[item.name] is None else ranks[item.name] * (item.out_features + item.in_features)
            for item in space.specs
        )
        if storage == "width":
            multiplied = kept_params(space.specs, ranks, storage)
        step = 2.0 + multiplied * 1e-4
        assert budgets["max_time_per_token_ms"].cost(space.specs, ranks) == pytest.approx(step)
        answer = 7.0 + multiplied * 1e-3 + 2 * step
        assert budgets["max_time_per_answer_ms"].cost(space.specs, ranks) == pytest.approx(answer)
    for budget in budgets.values():
        assert budget.dense(space) == pytest.approx(budget.cost(space.specs, uniform(space, 1.0)))
        rows = budget.table(space)
        chosen = sum(row[gene] for row, gene in zip(rows, space.uniform(0.5), strict=True))
        assert budget.fixed + chosen == pytest.approx(budget.cost(space.specs, uniform(space, 0.5)))
        assert budget.least(space) == pytest.approx(budget.fixed + sum(map(min, rows)))


def test_a_block_that_is_left_out_costs_nothing():
    space = toy_space(skip=True)
    dropped = space.ranks((0,) * len(space.specs) + (1,) * len(space.blocks))
    assert set(dropped.values()) == {0}
    for budget in every_budget(space, **dict.fromkeys(LIMITS, 10**9)):
        assert budget.cost(space.specs, dropped) == budget.fixed == budget.least(space)


def test_one_token_answers_cost_no_step():
    space = toy_space()
    (budget,) = every_budget(space, answer_tokens=1, max_time_per_answer_ms=1000)
    assert budget.cost(space.specs, uniform(space, 1.0)) == pytest.approx(7.0 + space.linears * 1e-3)


def test_ranks_between_two_levels_are_interpolated():
    def row(rank):
        return TimedMatrix((64,), 64, rank, "pivoted_output")

    times = {row(8): (1.0, 0.1), row(16): (3.0, 0.2), row(24): (4.0, 0.6), TimedMatrix((64,), 64, None, DENSE): (9, 9)}
    table = make_table(times, (10, 10), {}, {}, 1, "p", "F32", 4)
    assert table.matrix_ms(row(16)) == (3.0, 0.2)
    assert table.matrix_ms(row(12)) == pytest.approx((2.0, 0.15))
    assert table.matrix_ms(row(22)) == pytest.approx((3.75, 0.5))
    assert table.matrix_ms(row(28)) == pytest.approx((4.5, 0.8)), "above all, the last two go on"
    assert table.matrix_ms(row(4)) == (1.0, 0.1), "below all, the first stays"
    with pytest.raises(ArtifactError, match="no row for"):
        table.matrix_ms(TimedMatrix((64,), 64, 16, "pair"))


def test_a_table_survives_its_file():
    table = toy_table(toy_space())
    assert TimeTable.from_json(table.to_json(), "times.json") == table
    with pytest.raises(ArtifactError, match=r"times\.json: not a time table"):
        TimeTable.from_json({"rows": [{"matrix": {}}]}, "times.json")


def test_rows_name_what_the_export_computes():
    space = toy_space(layers=1)
    kinds = {item.storage for item in space_matrices(space)}
    assert kinds == {DENSE, "pivoted_input", "pivoted_output"}
    assert {item.storage for item in space_matrices(toy_space(layers=1, storage="pair"))} == {DENSE, "pair"}
    narrow = space_matrices(toy_space(layers=1, storage="width"))
    assert {item.storage for item in narrow} == {DENSE, FEWER_OUTPUTS, FEWER_INPUTS}
    assert TimedMatrix((128, 128), 64, 32, FEWER_OUTPUTS) in narrow
    assert TimedMatrix((128, 128), 64, 32, FEWER_OUTPUTS).multiplied() == ((32, 32), 64)
    assert TimedMatrix((64,), 128, 32, FEWER_INPUTS).multiplied() == ((64,), 32)
    assert TimedMatrix((64, 16, 16), 64, 16, FEWER_OUTPUTS).multiplied() == ((16, 4, 4), 64)
    assert len(space_matrices(toy_space(layers=5))) == len(space_matrices(space)), "equal layers are measured once"
    assert len(space_matrices(space)) == sum(map(len, space.levels))


def test_the_first_budget_exceeded_is_found():
    space = toy_space()
    dense, small = uniform(space, 1.0), uniform(space, 0.25)
    budgets = every_budget(space, max_params=40_000, max_time_per_token_ms=5.0)
    assert first_exceeded(space.specs, budgets, dense).name == "max_params"
    assert first_exceeded(space.specs, budgets[1:], dense).name == "max_time_per_token_ms"
    assert first_exceeded(space.specs, budgets, small) is None
    assert first_exceeded(space.specs, (), dense) is None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("skip", [False, True])
def test_the_knapsack_respects_every_budget(seed, skip):
    rng = np.random.default_rng(seed)
    space = toy_space(layers=3, skip=skip)
    damage = tuple(tuple(np.cumsum([0.0, *rng.random(len(levels))])) for levels in space.levels)
    generous = dict.fromkeys(LIMITS, 10**9)
    limits = {}
    for budget in every_budget(space, **generous):
        least, dense = budget.least(space), budget.dense(space)
        limits[budget.name] = least + rng.uniform(0.3, 1.0) * (dense - least)
    limits["max_params"] = int(limits["max_params"])
    budgets = every_budget(space, **limits)
    plan = solve(space, damage, budgets)
    assert plan is not None
    assert first_exceeded(space.specs, budgets, space.ranks(plan)) is None


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_may_be_exactly_what_the_cheapest_plan_costs(name):
    space = toy_space()
    (generous,) = every_budget(space, **{name: 10**9})
    least = generous.least(space)
    budgets = every_budget(space, **{name: round(least) if name == "max_params" else least})
    plan = solve(space, tuple((*range(len(row)), 99.0) for row in space.levels), budgets)
    assert budgets[0].cost(space.specs, space.ranks(plan)) == pytest.approx(least)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_below_the_cheapest_plan_is_refused_with_what_would_do(name):
    space = toy_space()
    unit, limit = LIMITS[name]
    with pytest.raises(LimitMissed) as caught:
        every_budget(space, **{name: limit})
    told = str(caught.value)
    assert told.startswith(f"search.{name} {limit:g} {unit}: the cheapest plan of the grid needs ")
    assert told.endswith(" of it outside the matrices; raise the limit or extend the grid")
    needed = float(told.split("needs ")[1].split(",", maxsplit=1)[0])
    every_budget(space, **{name: int(needed) if name == "max_params" else needed})


def candidates(space, *plans, rule="interval"):
    scored = {}
    for factor, loss, bound, feasible, complete in plans:
        verdict = Verdict(1.0 - loss, loss, bound, feasible, False, "")
        ranks = uniform(space, factor)
        scored[factor, "labels"] = Scored(ranks, "labels", factor, complete, verdict)
    return SimpleNamespace(scored=scored, specs=space.specs, acceptance=Acceptance(0.05, rule, 0.8, 0.95))


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_costs_too_much_accuracy_is_told_with_the_best_within_it(name):
    space = toy_space()
    dense = uniform(space, 1.0)
    (generous,) = every_budget(space, **{name: 10**9})
    limit = generous.cost(space.specs, uniform(space, 0.5))
    (budget,) = every_budget(space, **{name: round(limit) if name == "max_params" else limit})
    found = candidates(
        space, (0.75, 0.01, 0.03, True, True), (0.5, 0.08, 0.1, False, True), (0.25, 0.3, 0.4, False, False)
    )
    needs = shown(budget.cost(space.specs, uniform(space, 0.75)))
    with pytest.raises(LimitMissed) as caught:
        choose(found, [budget], dense)
    assert str(caught.value) == (
        f"search.{name} {budget.limit:.12g} {budget.unit}: no plan keeps the loss within the tolerance 5.0% (the best "
        f"within the limit loses 8.0%, up to 10.0% by its interval; one that keeps it has {needs} {budget.unit}); "
        "raise the limit or the tolerance"
    )


def test_the_winner_is_within_the_limits_or_dense():
    space = toy_space()
    dense = uniform(space, 1.0)
    plans = ((0.75, 0.01, 0.03, True, True), (0.5, 0.02, 0.04, True, True), (0.25, 0.3, 0.4, False, True))
    (budget,) = every_budget(space, max_params=OTHER + kept_params(space.specs, uniform(space, 0.75), "pivoted"))
    assert choose(candidates(space, *plans), [budget], dense).kept_linears == 0.5
    assert choose(candidates(space, *plans[:1]), [budget], dense).kept_linears == 0.75
    assert choose(candidates(space, plans[2]), [], dense) is None
    with pytest.raises(LimitMissed, match=r"the best within the limit loses 30\.0%\)"):
        choose(candidates(space, plans[2], rule="point"), [budget], dense)


def test_limits_that_exclude_each_other_are_all_named():
    space = toy_space()
    small = every_budget(space, max_params=20_000)[0]
    slow = time_budget("max_time_per_token_ms", toy_table(space), "pivoted", 0, 1, 1e9)
    with pytest.raises(
        LimitMissed, match=r"max_params 20000 parameters and search\.max_time_per_token_ms 1000000000 ms"
    ):
        choose(candidates(space), [small, slow], uniform(space, 1.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [(134_515_008, "134515008"), (23.456789, "23.46"), (0.0224613, "0.02247"), (5888, "5888"), (0, "0")],
)
def test_costs_are_shown_rounded_up(value, text):
    assert shown(value) == text

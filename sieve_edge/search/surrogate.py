"""Plans without a forward pass: the damage of every choice adds up, so the best plan of a size is a knapsack.

The damage of one matrix at one rank is the energy that its projection discards, in the metric of ``learn``: with the
Fisher metric an estimate of the answer's KL divergence. Source: method.md, sections 4 and 6.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, hstack, lil_matrix

from sieve_edge.model.bank import ProjectionBank
from sieve_edge.search.budgets import Budget, first_exceeded
from sieve_edge.search.space import Chromosome, SearchSpace

Damage = tuple[tuple[float, ...], ...]
"""Damage of every level of every matrix, and at the end of each row that of leaving the matrix out."""

_GAP = 1e-3
_SECONDS = 20.0
_DISAGREES = 1.5
_SOLVER_MARGIN = 1e-5
"""Fraction of a limit that is left free where the solver's tolerance let a plan exceed it."""


def damage_table(space: SearchSpace, bank: ProjectionBank) -> Damage:
    """Read the discarded energy of every choice.

    Args:
        space: Search space.
        bank: Projections with their errors.

    Returns:
        The table.
    """
    return tuple(
        (*(bank.damage(spec.name, level.rank) for level in choices), bank.damage(spec.name, 0))
        for spec, choices in zip(space.specs, space.levels, strict=True)
    )


def departures(damage: Damage, measured: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """Compare damages with measured KL divergences; one scale, the median, turns damages into nats.

    Args:
        damage: Table of ``damage_table``.
        measured: ``(matrix, level)`` -> KL divergence with that matrix alone pruned, in nats.

    Returns:
        Matrix -> natural logarithm of what its damage should be multiplied by.
    """
    ratios = {
        index: float(np.log(max(nats, 1e-12) / max(damage[index][level], 1e-300)))
        for (index, level), nats in measured.items()
    }
    scale = float(np.median(list(ratios.values())))
    return {index: ratio - scale for index, ratio in ratios.items()}


def corrections(space: SearchSpace, damage: Damage, measured: Mapping[tuple[int, int], float]) -> list[float]:
    """Compare damages with measured KL divergences, and say by what each matrix's damage should be multiplied.

    Where a measured matrix departs from the common scale by more than half as much again, its damage is corrected, and
    so are its neighbours of the same kind: between two measured layers the correction is interpolated, in logarithms.

    Args:
        space: Search space.
        damage: Table of ``damage_table``.
        measured: ``(matrix, level)`` -> KL divergence with that matrix alone pruned, in nats.

    Returns:
        Factor of each matrix, 1 where they agree.
    """
    off = departures(damage, measured)
    factors = [1.0] * len(space.specs)
    for kind in {spec.kind for spec in space.specs}:
        known = sorted((space.specs[index].layer, value) for index, value in off.items() if _kind(space, index) == kind)
        if all(abs(value) <= np.log(_DISAGREES) for _, value in known):
            continue
        layers, values = zip(*known, strict=True)
        for index, spec in enumerate(space.specs):
            if spec.kind == kind:
                factors[index] = float(np.exp(np.interp(spec.layer, layers, values)))
    return factors


def corrected(damage: Damage, factors: Sequence[float]) -> Damage:
    """Multiply each matrix's damages.

    Args:
        damage: Table.
        factors: Factor of each matrix.

    Returns:
        The corrected table.
    """
    return tuple(tuple(value * factor for value in row) for row, factor in zip(damage, factors, strict=True))


def solve(space: SearchSpace, damage: Damage, budgets: Sequence[Budget]) -> Chromosome | None:
    """Find the plan of least damage within budgets, with HiGHS.

    One variable per level of a matrix, and one per block that may be skipped; exactly one per matrix is 1.

    Args:
        space: Search space.
        damage: Damage of every choice.
        budgets: What the plan may cost.

    Returns:
        The plan, or None if no plan meets the budgets.
    """
    for margin in (0.0, _SOLVER_MARGIN):
        chromosome = _solve(space, damage, budgets, margin)
        if chromosome is None:
            return None
        # HiGHS lets a sum exceed its bound by a tolerance of its own.
        if first_exceeded(space.specs, budgets, space.ranks(chromosome)) is None:
            return chromosome
    return None


def _solve(space: SearchSpace, damage: Damage, budgets: Sequence[Budget], margin: float) -> Chromosome | None:
    owners = np.repeat(np.arange(len(space.specs)), [len(choices) for choices in space.levels])
    objective = [value for row in damage for value in row[:-1]]
    choose = csr_matrix((np.ones(len(owners)), (owners, np.arange(len(owners)))))
    costs = [[cost for row in budget.table(space) for cost in row] for budget in budgets]
    if space.blocks:
        skips = lil_matrix((len(space.specs), len(space.blocks)))
        for number, block in enumerate(space.blocks):
            skips[list(block), number] = 1.0
            objective.append(max(damage[index][-1] for index in block))
        choose = hstack([choose, skips.tocsr()]).tocsr()
        costs = [[*row, *(0.0 for _ in space.blocks)] for row in costs]
    constraints = [LinearConstraint(choose, 1.0, 1.0)]
    for row, budget in zip(costs, budgets, strict=True):
        limit = max(budget.limit, 1e-12)
        constraints.append(LinearConstraint(np.asarray([row]) / limit, -np.inf, 1.0 - margin - budget.fixed / limit))
    scale = max(objective) or 1.0
    result = milp(
        np.asarray(objective) / scale,
        constraints=constraints,
        integrality=np.ones(len(objective)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
    )
    if result.x is None:
        return None
    return _read(space, np.round(result.x).astype(int))


def _read(space: SearchSpace, chosen: np.ndarray) -> Chromosome:
    genes, start = [], 0
    for choices in space.levels:
        mine = chosen[start : start + len(choices)]
        genes.append(int(mine.argmax()) if mine.any() else 0)
        start += len(choices)
    return (*genes, *(int(flag) for flag in chosen[start:]))


def _kind(space: SearchSpace, index: int) -> str:
    return space.specs[index].kind

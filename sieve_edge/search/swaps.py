"""Local mutations that keep a plan's size: one matrix gives parameters, others take them.

Source: the level switch of EvoPress, arXiv 2410.14649.
"""

from collections.abc import Sequence

import numpy as np

from sieve_edge.search.budgets import Budget
from sieve_edge.search.space import Chromosome, SearchSpace
from sieve_edge.search.surrogate import Damage

Table = tuple[tuple[float, ...], ...]

_POOL = 16
"""Swaps drawn for each that is returned; the surrogate picks."""


def swapped(
    chromosome: Chromosome,
    space: SearchSpace,
    tables: Sequence[Table],
    slack: Sequence[float],
    rng: np.random.Generator,
) -> Chromosome:
    """Prune one random matrix by a step more, and others by a step less while the budgets hold.

    Blocks that are left out stay so; their matrices have nothing to give or take.

    Args:
        chromosome: Genes.
        space: Search space.
        tables: Cost of every choice, for each budget.
        slack: What the chromosome leaves of each budget.
        rng: Random generator.

    Returns:
        The mutant; the chromosome itself if no gene can give.
    """
    matrices, skipped = len(space.specs), space.skipped(chromosome)
    givers = [
        index for index in range(matrices) if index not in skipped and chromosome[index] + 1 < space.gene_levels[index]
    ]
    if not givers:
        return chromosome
    giver = int(rng.choice(givers))
    genes, left = list(chromosome), list(slack)

    def move(index: int, step: int) -> None:
        old, new = genes[index], genes[index] + step
        if index == giver or all(
            rest >= table[index][new] - table[index][old] for table, rest in zip(tables, left, strict=True)
        ):
            for number, table in enumerate(tables):
                left[number] -= table[index][new] - table[index][old]
            genes[index] = new

    move(giver, 1)
    for index in rng.permutation(matrices):
        if index != giver and index not in skipped and genes[index] > 0:
            move(int(index), -1)
    return tuple(genes)


def offspring(
    chromosome: Chromosome,
    space: SearchSpace,
    budgets: Sequence[Budget],
    damage: Damage,
    count: int,
    rng: np.random.Generator,
) -> list[Chromosome]:
    """Draw swaps and keep those of least damage.

    Args:
        chromosome: Genes.
        space: Search space.
        budgets: What the plan may cost.
        damage: Damage of every choice.
        count: How many to keep.
        rng: Random generator.

    Returns:
        Different mutants, best first.
    """
    tables = [budget.table(space) for budget in budgets]
    ranks = space.ranks(chromosome)
    slack = [budget.limit - budget.cost(space.specs, ranks) for budget in budgets]
    pool = {swapped(chromosome, space, tables, slack, rng) for _ in range(count * _POOL)} - {chromosome}

    def total(genes: Chromosome) -> float:
        return sum(damage[index][gene] for index, gene in enumerate(genes[: len(damage)]))

    return sorted(pool, key=lambda genes: (total(genes), genes))[:count]

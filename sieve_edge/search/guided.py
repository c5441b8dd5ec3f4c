"""The guided search: a knapsack over the damage of every choice proposes, few forward passes dispose.

Source: method.md, section 6; rungs and swaps after EvoPress, arXiv 2410.14649.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sieve_edge.config import GuidedRecipe
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.progress import Progress
from sieve_edge.search.budgets import Budget, params_budget
from sieve_edge.search.candidates import Candidates
from sieve_edge.search.probing import measured_damage
from sieve_edge.search.space import Chromosome, SearchSpace
from sieve_edge.search.surrogate import Damage, solve
from sieve_edge.search.swaps import offspring


@dataclass(frozen=True)
class Ladder:
    """Knapsack plans by size: rung k keeps at most ``1 - (k + 1) * step`` of the linears."""

    space: SearchSpace
    damage: Damage
    budgets: tuple[Budget, ...]
    step: float

    def size(self, rung: int) -> float:
        """Say how large a rung's plan may be.

        Args:
            rung: Index, rising with pruning.

        Returns:
            Fraction of the linears.
        """
        return 1.0 - (rung + 1) * self.step

    def limits(self, rung: int) -> tuple[Budget, ...]:
        """List what a rung's plan must meet.

        Args:
            rung: Index.

        Returns:
            The user's budgets and the rung's own.
        """
        share = 1.0 / self.space.linears
        size = params_budget("size", self.space.storage, share, 0.0, self.size(rung), "of the linears")
        return (*self.budgets, size)

    def plan(self, rung: int) -> Chromosome | None:
        """Solve a rung.

        Args:
            rung: Index.

        Returns:
            The plan of least damage; None if none is small enough.
        """
        return solve(self.space, self.damage, self.limits(rung))


def guide(
    space: SearchSpace,
    bank: ProjectionBank,
    candidates: Candidates,
    budgets: Sequence[Budget],
    recipe: GuidedRecipe,
    refit: bool,
    rng: np.random.Generator,
    progress: Progress,
) -> None:
    """Search for the smallest feasible plan; what was scored stays with ``candidates``.

    Pseudocode::

        damage  = discarded energy of every choice, corrected by a few measured KLs
        rung    = bisection over the knapsack plans of a ladder of sizes, by a part of the labels, then by all,
                  to within what refit is expected to gain
        for a few sizes below it, going on down after a feasible plan and back half the way after another:
            plan = knapsack plan, improved by swaps that keep its size, by KL on few prompts
            score it on the labels, after refit where refit is on

    Args:
        space: Search space.
        bank: Projections with their errors.
        candidates: Scores plans.
        budgets: What a plan may cost.
        recipe: Sizes of everything.
        refit: Whether the last rung is scored after refit.
        rng: Random generator of the swaps.
        progress: Where progress is shown.
    """
    damage = measured_damage(space, bank, candidates, recipe.probes, progress)
    ladder = Ladder(space, damage, tuple(budgets), recipe.ladder_step)
    nothing_left = round(1.0 / recipe.ladder_step) - 1
    low, high = -1, nothing_left
    jump = recipe.refit_jump if refit else 1
    while high - low > jump:
        middle = (low + high) // 2
        chromosome = ladder.plan(middle)
        good = chromosome is not None and candidates.verdicts([space.ranks(chromosome)])[0].feasible
        low, high = (middle, high) if good else (low, middle)
    target, failed = low + jump, nothing_left
    for _ in range(recipe.last_rungs):
        if not low < target < failed:
            break
        if _last_rung(ladder, target, candidates, recipe, refit, rng):
            low, target = target, target + 1
        else:
            failed, target = target, (low + target) // 2


def _last_rung(
    ladder: Ladder, rung: int, candidates: Candidates, recipe: GuidedRecipe, refit: bool, rng: np.random.Generator
) -> bool:
    chromosome = ladder.plan(rung)
    if chromosome is None:
        return False
    space, limits = ladder.space, ladder.limits(rung)
    best = candidates.divergences([space.ranks(chromosome)])[0]
    for _ in range(recipe.swap_rounds):
        children = offspring(chromosome, space, limits, ladder.damage, recipe.offspring, rng)
        nats = candidates.divergences([space.ranks(child) for child in children])
        order = sorted(range(len(children)), key=lambda index: (nats[index], children[index]))
        if order and nats[order[0]] < best:
            chromosome, best = children[order[0]], nats[order[0]]
    return candidates.verdicts([space.ranks(chromosome)], "refit" if refit else "labels")[0].feasible

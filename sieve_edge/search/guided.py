"""The guided search: a knapsack over the damage of every choice proposes, few forward passes dispose.

Source: method.md, section 6; rungs and swaps after EvoPress, arXiv 2410.14649.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sieve_edge.config import GuidedRecipe
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.levels import Ranks
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
            score it on the labels, after refit where refit is on, unless its KL foretells too large a loss

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
        good = chromosome is not None and _promising(candidates, space.ranks(chromosome), refit)
        low, high = (middle, high) if good else (low, middle)
    target, failed = low + jump, nothing_left
    reached: _Reached | None = None
    for _ in range(recipe.last_rungs):
        if not low < target < failed:
            break
        found = _last_rung(ladder, target, candidates, recipe, refit, rng, reached, progress)
        if found is not None:
            reached, low, target = found, target, target + 1
        else:
            failed, target = target, (low + target) // 2


def _promising(candidates: Candidates, ranks: Ranks, refit: bool) -> bool:
    """Say whether to go on to smaller plans; where refit follows, the loss itself counts and not its interval."""
    verdict = candidates.verdicts([ranks])[0]
    if not refit:
        return verdict.feasible
    return not verdict.collapsed and verdict.loss <= candidates.acceptance.tolerance


class _Reached(NamedTuple):
    """A feasible plan of the last rung: what decided on it, and its KL divergence before refit, in nats."""

    decisive: float
    nats: float


def _last_rung(
    ladder: Ladder,
    rung: int,
    candidates: Candidates,
    recipe: GuidedRecipe,
    refit: bool,
    rng: np.random.Generator,
    larger: _Reached | None,
    progress: Progress,
) -> _Reached | None:
    """Score a size's best plan; None if it is not feasible, or not worth scoring after the larger one."""
    chromosome = ladder.plan(rung)
    if chromosome is None:
        return None
    space, limits, accept = ladder.space, ladder.limits(rung), candidates.acceptance
    best = candidates.divergences([space.ranks(chromosome)])[0]
    for _ in range(recipe.swap_rounds):
        children = offspring(chromosome, space, limits, ladder.damage, recipe.offspring, rng)
        nats = candidates.divergences([space.ranks(child) for child in children])
        order = sorted(range(len(children)), key=lambda index: (nats[index], children[index]))
        if order and nats[order[0]] < best:
            chromosome, best = children[order[0]], nats[order[0]]
    # Loss grows with the divergence: a plan that would lose too much in proportion is not refitted to see that it does.
    if larger is not None and larger.decisive * best > accept.tolerance * larger.nats:
        progress.say(
            f"  {candidates.kept(space.ranks(chromosome)):.3f} is not tried: its KL before refit is {best:.4f} nats, "
            f"that of the plan before {larger.nats:.4f}"
        )
        return None
    verdict = candidates.verdicts([space.ranks(chromosome)], "refit" if refit else "labels")[0]
    return _Reached(accept.decisive(verdict.loss, verdict.bound), best) if verdict.feasible else None

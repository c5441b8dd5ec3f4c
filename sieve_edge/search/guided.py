"""The guided search: a knapsack over the damage of every choice proposes, few forward passes dispose.

Source: method.md, section 6; rungs and swaps after EvoPress, arXiv 2410.14649.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.levels import Ranks
from sieve_edge.progress import Progress
from sieve_edge.recipe import GuidedRecipe
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
        rung    = bisection over the knapsack plans of a ladder of sizes, by KL, by a part of the labels, then by
                  all, to within what refit is expected to gain
        for a few sizes below it, going on down after a feasible plan and back up after another:
            plan = knapsack plan, improved by swaps that keep its size, by KL on few prompts
            score it on the labels, after refit where refit is on

    A plan whose KL, in proportion to that of the last good one, foretells too large a loss is not scored further.

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
    walk = _Scorer(candidates, "labels", refit, progress)
    nothing_left = round(1.0 / recipe.ladder_step) - 1
    low, high = -1, nothing_left
    jump = recipe.refit_jump if refit else 1
    while high - low > jump:
        middle = (low + high) // 2
        chromosome = ladder.plan(middle)
        promising = chromosome is not None and walk.good(space.ranks(chromosome))
        low, high = (middle, high) if promising else (low, middle)
    last = _Scorer(candidates, "refit" if refit else "labels", False, progress)

    def good(rung: int) -> bool:
        chromosome = _improved(ladder, rung, candidates, recipe, rng)
        return chromosome is not None and last.good(space.ranks(chromosome))

    last_rungs(low + jump, nothing_left, recipe.last_rungs, good)


def last_rungs(start: int, end: int, tries: int, good: Callable[[int], bool]) -> int:
    """Look for the furthest good rung near a start: on while rungs are good, else back until one is.

    Args:
        start: First rung to try.
        end: Rung that is not tried any more.
        tries: Rungs to try once a good one is known; without one the way back goes on, in longer steps.
        good: Tries a rung.

    Returns:
        The furthest good rung; -1 if none is.
    """
    known, failed, target, tried = -1, end, start, 0
    while known < target < failed and (tried < tries or known < 0):
        tried += 1
        if good(target):
            known, target = target, target + 1
        else:
            failed, target = target, max(target - (1 if tried < tries else 2), known + 1)
    return known


class _Scorer:
    """Scores plans on one rung; a plan whose KL divergence foretells too large a loss is not scored to see it."""

    def __init__(self, candidates: Candidates, rung: str, point: bool, progress: Progress) -> None:
        self._candidates = candidates
        self._rung = rung
        self._point = point
        self._progress = progress
        self._reached: tuple[float, float] | None = None

    def good(self, ranks: Ranks) -> bool:
        """Score a plan; where refit follows (``point``), its loss decides and not the loss's interval."""
        accept = self._candidates.acceptance
        nats = self._candidates.divergences([ranks])[0]
        if self._reached is not None and self._reached[0] * nats > accept.tolerance * self._reached[1]:
            self._progress.say(
                f"  a plan of {self._candidates.kept(ranks):.3f} is not scored: its KL is {nats:.4f} nats, that of the "
                f"larger one {self._reached[1]:.4f}"
            )
            return False
        verdict = self._candidates.verdicts([ranks], self._rung)[0]
        decisive = verdict.loss if self._point else accept.decisive(verdict.loss, verdict.bound)
        good = decisive <= accept.tolerance and not verdict.collapsed
        if good:
            self._reached = decisive, nats
        return good


def _improved(
    ladder: Ladder, rung: int, candidates: Candidates, recipe: GuidedRecipe, rng: np.random.Generator
) -> Chromosome | None:
    """Take a size's knapsack plan and improve it by swaps that keep the size, by KL on few prompts."""
    chromosome = ladder.plan(rung)
    if chromosome is None:
        return None
    space, limits = ladder.space, ladder.limits(rung)
    best = candidates.divergences([space.ranks(chromosome)])[0]
    for _ in range(recipe.swap_rounds):
        children = offspring(chromosome, space, limits, ladder.damage, recipe.offspring, rng)
        nats = candidates.divergences([space.ranks(child) for child in children])
        order = sorted(range(len(children)), key=lambda index: (nats[index], children[index]))
        if order and nats[order[0]] < best:
            chromosome, best = children[order[0]], nats[order[0]]
    return chromosome

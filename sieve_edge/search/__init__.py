"""Stage: the smallest plan that keeps the task's score within the tolerance, among those scored."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sieve_edge.artifacts import FRONT, SCORED, PruningPlan
from sieve_edge.config import Target
from sieve_edge.files import write_json
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.levels import Ranks, ranks_at
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.search.budgets import Budget, first_exceeded
from sieve_edge.search.candidates import Candidates, Scored
from sieve_edge.search.genetic import evolve
from sieve_edge.search.guided import guide
from sieve_edge.search.result import bottlenecks, choose, front, scored
from sieve_edge.search.space import SearchSpace, plan_id
from sieve_edge.search.uniform import bisect


def search(
    space: SearchSpace,
    bank: ProjectionBank,
    candidates: Candidates,
    budgets: Sequence[Budget],
    target: Target,
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> PruningPlan:
    """Search for a pruning plan on the selection split.

    Reads the bank; writes ``history.jsonl`` (every answer), ``scored.json`` (what answers were worth),
    ``generations.jsonl`` (genetic), ``plan.json`` (the winner), its refitted factors, ``front.json`` where asked for,
    and ``bottlenecks.json`` to ``out``. May be interrupted at any moment: it goes on at the candidate that was not
    finished. Costs the tokens that the plan records.

    Args:
        space: Levels of every matrix.
        bank: Projections.
        candidates: Scores plans, with history and executor.
        budgets: What a plan may cost.
        target: The device; its storage and rank multiple decide the ranks.
        recipe: Tolerance, strategy, seed.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        The smallest feasible plan that was scored.
    """
    wanted = recipe.search
    dense_accuracy = candidates.dense_accuracy
    needed = (1.0 - recipe.search_tolerance) * dense_accuracy
    _tell_levels(space, progress)
    progress.say(f"  {wanted.strategy}: dense {dense_accuracy:.4f}; a plan needs {needed:.4f} on the selection split")
    rng = np.random.default_rng(recipe.seed)
    dense: Ranks = dict.fromkeys((spec.name for spec in space.specs), None)
    with progress.task("search", foreseen_plans(recipe), "plans (an estimate)") as advance:
        candidates.on_scored = _teller(space, budgets, progress, advance)
        if wanted.strategy == "uniform":
            _uniform(space, bank, candidates, target, recipe)
        elif wanted.strategy == "genetic":
            evolve(space, candidates, budgets, needed, wanted.genetic, rng, out / "generations.jsonl")
        else:
            guide(space, bank, candidates, budgets, wanted.guided, wanted.refit, rng, progress)
        chosen = choose(candidates, budgets, dense)
        if chosen is not None and wanted.refit and chosen.rung != "refit":
            candidates.verdicts([chosen.ranks], "refit", give_up=False)
            chosen = choose(candidates, budgets, dense)
    ranks = dense if chosen is None else chosen.ranks
    kept = candidates.kept(ranks)
    plan = PruningPlan(
        id=plan_id(ranks),
        ranks=dict(ranks),
        storage=target.storage,
        kept_linears=kept,
        kept_model=space.kept_model(kept),
        accuracy=dense_accuracy if chosen is None else chosen.verdict.accuracy,
        dense_accuracy=dense_accuracy,
        loss=0.0 if chosen is None else chosen.verdict.loss,
        loss_bound=0.0 if chosen is None else chosen.verdict.bound,
        accept=candidates.acceptance.told(),
        refit=chosen is not None and chosen.rung == "refit",
        strategy=wanted.strategy,
        seed=recipe.seed,
        evaluations=len(candidates.scored),
        tokens_scored=round(candidates.tokens),
    )
    write_json(out / SCORED, scored(candidates))
    if wanted.front:
        write_json(out / FRONT, front(space, candidates))
    write_json(
        out / "bottlenecks.json", bottlenecks(space, list(candidates.scored.values()), needed, wanted.genetic.kappa)
    )
    candidates.drop_refits(keep=ranks if plan.refit else None)
    write_json(out / "plan.json", asdict(plan))
    return plan


def foreseen_plans(recipe: Recipe) -> int:
    """Foresee how many plans are scored on the whole selection split.

    Args:
        recipe: Strategy and its settings.

    Returns:
        Plans; an estimate: fewer where plans are given up, more where nothing is feasible or fitness goes on rising.
    """
    wanted = recipe.search
    if wanted.strategy == "genetic":
        return wanted.genetic.population * (wanted.genetic.patience + 1)
    if wanted.strategy == "uniform":
        return math.ceil(math.log2(len(recipe.grid) + 1)) + math.ceil(math.log2(1.0 / wanted.resolution)) + 1
    return math.ceil(math.log2(1.0 / wanted.guided.ladder_step)) + wanted.guided.last_rungs


def _teller(
    space: SearchSpace, budgets: Sequence[Budget], progress: Progress, advance: Callable[[int], None]
) -> Callable[[Scored], None]:
    """Make what shows how far the search is, and the smallest plan so far that meets everything."""
    best = 1.0

    def tell(scored: Scored) -> None:
        nonlocal best
        advance(1)
        smaller = scored.verdict.feasible and scored.kept_linears < best
        if smaller and first_exceeded(space.specs, budgets, scored.ranks) is None:
            best = scored.kept_linears
            progress.best(plan_id(scored.ranks), best, scored.verdict.accuracy, scored.verdict.loss)

    return tell


def _uniform(space: SearchSpace, bank: ProjectionBank, candidates: Candidates, target: Target, recipe: Recipe) -> None:
    def feasible(factor: float) -> bool:
        ranks = ranks_at(space.specs, factor, target.storage, target.rank_multiple)
        return candidates.verdicts([ranks])[0].feasible

    # A method that fits each rank on its own has only the grid's ranks; nothing lies between two levels.
    resolution = 1.0 if bank.nested(space.specs[0].name) is None else recipe.search.resolution
    bisect([factor for factor in space.grid if factor < 1.0], resolution, feasible)


def _tell_levels(space: SearchSpace, progress: Progress) -> None:
    for kind, row in {spec.kind: row for spec, row in zip(space.specs, space.levels, strict=True)}.items():
        told = ", ".join(f"{level.factor:g} ({level.rank or 'dense'})" for level in row)
        progress.say(f"  levels of {kind} and their ranks: {told}")

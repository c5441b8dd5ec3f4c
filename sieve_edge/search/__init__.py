"""Stage 3: the smallest plan that keeps the task's score within the tolerance, among those scored."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sieve_edge.artifacts import PruningPlan
from sieve_edge.config import Recipe, Target, Task
from sieve_edge.files import write_json
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.levels import kept_params, merged_levels, ranks_at
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.matrices import count_params, linear_params
from sieve_edge.progress import Progress
from sieve_edge.search.candidates import CandidateScorer
from sieve_edge.search.uniform import bisect
from sieve_edge.task.examples import Example


def search(
    loaded: LoadedModel,
    bank: ProjectionBank,
    dense_accuracy: float,
    task: Task,
    target: Target,
    selection: Sequence[Example],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> PruningPlan:
    """Search for a pruning plan on the selection split.

    Reads the model and the bank; appends every scored candidate to ``history.jsonl`` and writes ``plan.json`` in
    ``out``. May be interrupted: it goes on at the candidate that was not finished. Costs one forward pass over the
    selection split per candidate.

    Args:
        loaded: Dense model.
        bank: Its projections.
        dense_accuracy: The dense model's corrected balanced accuracy on the selection split.
        task: The task.
        target: The device; its storage and rank multiple decide the ranks.
        selection: The only examples the search sees.
        recipe: Tolerance, grid, seed.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        The smallest feasible plan that was scored.
    """
    specs = loaded.specs
    total, linears = count_params(loaded.model), linear_params(specs)
    levels = [factor for factor, _ in merged_levels(specs, recipe.grid, target.storage, target.rank_multiple)]
    needed = (1.0 - recipe.tolerance) * dense_accuracy
    progress.say(f"  levels after rounding to ranks: {', '.join(f'{factor:g}' for factor in levels)}")
    progress.say(f"  dense {dense_accuracy:.4f} on {len(selection)} selection examples; a plan needs {needed:.4f}")
    scorer = CandidateScorer(loaded, bank, task, selection, recipe, out / "history.jsonl", progress)

    def feasible(factor: float) -> bool:
        ranks = ranks_at(specs, factor, target.storage, target.rank_multiple)
        return scorer.score(factor, ranks, kept_params(specs, ranks, target.storage) / linears, needed)

    # A method that fits each rank on its own has only the grid's ranks; nothing lies between two levels.
    resolution = 1.0 if bank.nested(specs[0].name) is None else recipe.search.resolution
    chosen = bisect([factor for factor in levels if factor < 1.0], resolution, feasible)
    ranks = ranks_at(specs, chosen, target.storage, target.rank_multiple)
    kept = kept_params(specs, ranks, target.storage)
    plan = PruningPlan(
        factors={spec.name: chosen for spec in specs},
        ranks=ranks,
        storage=target.storage,
        kept_linears=kept / linears,
        kept_model=(total - linears + kept) / total,
        accuracy=scorer.records[chosen]["corrected"] if chosen < 1.0 else dense_accuracy,
        dense_accuracy=dense_accuracy,
        strategy=recipe.search.strategy,
        seed=recipe.seed,
        evaluations=len(scorer.records),
    )
    write_json(out / "plan.json", asdict(plan))
    return plan

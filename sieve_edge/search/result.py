"""What a search ends with: the plan, the front, and the bottlenecks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sieve_edge.errors import LimitMissed
from sieve_edge.model.levels import Ranks
from sieve_edge.search.acceptance import Acceptance
from sieve_edge.search.budgets import Budget, first_exceeded, shown
from sieve_edge.search.candidates import Candidates, Scored
from sieve_edge.search.fitness import fitness
from sieve_edge.search.space import SearchSpace, plan_id
from sieve_edge.task.evaluate import MAX_UNJUDGED

_NEAR_BEST = 0.2
"""Plans within this fraction of the best fitness tell which matrices are bottlenecks (LLM-Sieve, appendix A.4)."""


def choose(candidates: Candidates, budgets: Sequence[Budget], dense: Ranks) -> Scored | None:
    """Find the smallest feasible plan that was scored; of a plan with and without refit, the better.

    Args:
        candidates: What was scored.
        budgets: What a plan may cost.
        dense: The plan that changes nothing.

    Returns:
        The winner; None for the dense model.

    Raises:
        LimitMissed: If the dense model exceeds a budget and no plan that was scored is feasible within all.
    """
    met = [item for item in candidates.scored.values() if not first_exceeded(candidates.specs, budgets, item.ranks)]
    feasible = [item for item in met if item.verdict.feasible]
    if feasible:
        return min(
            feasible, key=lambda item: (item.kept_linears, plan_id(item.ranks), -item.verdict.accuracy, item.rung)
        )
    exceeded = [budget for budget in budgets if not budget.met(budget.cost(candidates.specs, dense))]
    if not exceeded:
        return None
    # Where nothing is within all limits, they may exclude each other: then each is named.
    blamed = exceeded if met else budgets
    raise LimitMissed(
        f"{' and '.join(budget.told() for budget in blamed)}: no plan keeps the loss within the tolerance "
        f"{candidates.acceptance.tolerance:.1%} ({_best_within(met, candidates.acceptance)}"
        f"{_cheapest_feasible(candidates, exceeded)}); raise the limit or the tolerance"
    )


def why_dense(candidates: Candidates) -> str:
    """Say why no plan was chosen.

    Args:
        candidates: What was scored.

    Returns:
        A phrase; it names a judge that said too little of plans, since then they cannot be chosen, however good.
    """
    told = "no plan met the tolerance"
    silent = sum(item.verdict.silent for item in candidates.scored.values())
    if not silent:
        return told
    return (
        f"{told}, on {silent} of {len(candidates.scored)} the judge gave too few verdicts; at most {MAX_UNJUDGED:.0%} "
        "of a plan's answers may go without one"
    )


def _best_within(met: Sequence[Scored], acceptance: Acceptance) -> str:
    """Tell how near the plans within the limits came; plans given up early count only if there are no others."""
    if not met:
        return "none that was scored is within the limit"
    by_interval = acceptance.rule == "interval"
    if all(item.verdict.silent for item in met):
        return "on all within the limit the judge gave too few verdicts"
    whole = [item for item in met if item.complete] or met
    best = min((item.verdict for item in whole), key=lambda verdict: verdict.bound if by_interval else verdict.loss)
    bound = f", up to {best.bound:.1%} by its interval" if by_interval else ""
    return f"the best within the limit loses {best.loss:.1%}{bound}"


def _cheapest_feasible(candidates: Candidates, exceeded: Sequence[Budget]) -> str:
    """Tell what a plan outside the limits needs, if one that keeps the loss was found there."""
    costs = [
        [budget.cost(candidates.specs, item.ranks) for budget in exceeded]
        for item in candidates.scored.values()
        if item.verdict.feasible
    ]
    if not costs:
        return ""
    best = min(costs, key=lambda row: max(cost / budget.limit for cost, budget in zip(row, exceeded, strict=True)))
    needs = [f"{shown(cost)} {budget.unit}" for cost, budget in zip(best, exceeded, strict=True)]
    return f"; one that keeps it has {' and '.join(needs)}"


def front(space: SearchSpace, candidates: Candidates) -> list[dict[str, Any]]:
    """List the plans that no other one beats in size and accuracy, of everything that was scored to the end.

    Args:
        space: Search space.
        candidates: What was scored.

    Returns:
        Plans by falling size, each with what ``PruningPlan`` needs of it.
    """
    whole = sorted(
        (item for item in candidates.scored.values() if item.complete and not item.verdict.collapsed),
        key=lambda item: (item.kept_linears, -item.verdict.accuracy, plan_id(item.ranks), item.rung),
    )
    chosen: list[Scored] = []
    for item in whole:
        if not chosen or item.verdict.accuracy > chosen[-1].verdict.accuracy:
            chosen.append(item)
    return [
        {
            "id": plan_id(item.ranks),
            "refit": item.rung == "refit",
            "kept_linears": item.kept_linears,
            "kept_model": space.kept_model(item.kept_linears),
            "accuracy": item.verdict.accuracy,
            "loss": item.verdict.loss,
            "loss_bound": item.verdict.bound,
            "feasible": item.verdict.feasible,
            "ranks": dict(item.ranks),
        }
        for item in reversed(chosen)
    ]


def scored(candidates: Candidates) -> list[dict[str, Any]]:
    """List what was scored on the selection split, in the order in which it was first asked for.

    Args:
        candidates: What was scored.

    Returns:
        One record for each plan and rung; the figures of one that was given up (not ``complete``) are of the first
        part.
    """
    return [
        {
            "plan": plan_id(item.ranks),
            "rung": item.rung,
            "kept_linears": item.kept_linears,
            "complete": item.complete,
            "accuracy": item.verdict.accuracy,
            "loss": item.verdict.loss,
            "loss_bound": item.verdict.bound,
            "feasible": item.verdict.feasible,
            "collapsed": item.verdict.collapsed,
        }
        for item in candidates.scored.values()
    ]


def bottlenecks(space: SearchSpace, scored: Sequence[Scored], needed: float, kappa: float) -> dict[str, Any]:
    """Say which matrices good plans leave alone.

    Args:
        space: Search space.
        scored: What was scored.
        needed: Accuracy that the tolerance asks for.
        kappa: Steepness of the fitness.

    Returns:
        ``plans`` counted; ``dense_probability`` of each matrix among them; ``kept_by_kind`` and ``kept_by_layer``,
        mean kept fractions.

    Source:
        LLM-Sieve, appendices A.2, A.3 and A.4.
    """
    whole = {plan_id(item.ranks): item for item in scored if item.complete}
    worth = {name: fitness(item.kept_linears, item.verdict.accuracy, needed, kappa) for name, item in whole.items()}
    best = max(worth.values(), default=0.0)
    plans = [whole[name].ranks for name in sorted(worth) if worth[name] >= (1.0 - _NEAR_BEST) * best]
    if not plans:
        return {"plans": 0, "dense_probability": {}, "kept_by_kind": {}, "kept_by_layer": {}}
    kept: dict[str, list[float]] = {}
    for spec in space.specs:
        share = [space.kept(spec, ranks) for ranks in plans]
        for group in (f"kind {spec.kind}", f"layer {spec.layer}"):
            kept.setdefault(group, []).extend(share)
    return {
        "plans": len(plans),
        "dense_probability": {
            spec.name: float(np.mean([ranks[spec.name] is None for ranks in plans])) for spec in space.specs
        },
        "kept_by_kind": _means(kept, "kind "),
        "kept_by_layer": _means(kept, "layer "),
    }


def _means(groups: Mapping[str, Sequence[float]], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): float(np.mean(values)) for name, values in groups.items() if name.startswith(prefix)
    }

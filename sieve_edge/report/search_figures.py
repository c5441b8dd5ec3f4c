"""Figures of the search: what was scored, what no plan beats, and how far it got."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sieve_edge.artifacts import PruningPlan
from sieve_edge.report.svg import WIDTH, Drawing, Scale, padded, ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, WIDTH - 20.0, 14.0, 174.0
_RUNGS = {"labels": "as projected", "refit": "after refit"}

Scored = Sequence[Mapping[str, Any]]


def front_of(scored: Scored) -> list[Mapping[str, Any]]:
    """List the plans that no other one beats in size and accuracy, of those that were scored to the end.

    Args:
        scored: What the search scored.

    Returns:
        Plans by rising size.
    """
    whole = [item for item in scored if item["complete"] and not item["collapsed"]]
    best: list[Mapping[str, Any]] = []
    for item in sorted(whole, key=lambda item: (item["kept_linears"], -item["accuracy"])):
        if not best or item["accuracy"] > best[-1]["accuracy"]:
            best.append(item)
    return best


def front_figure(name: str, scored: Scored, plan: PruningPlan, tolerance: float) -> Markup:
    """Draw the plans that were scored by size and accuracy, with the front and the plan that was fused.

    Args:
        name: Identifier of the figure.
        scored: What the search scored, at least one plan.
        plan: The plan that was fused.
        tolerance: Allowed relative loss.

    Returns:
        The figure.
    """
    needed = (1.0 - tolerance) * plan.dense_accuracy
    accuracies = [plan.dense_accuracy, needed, *(item["accuracy"] for item in scored)]
    x, y = Scale(0.0, 1.0, _LEFT, _RIGHT), Scale(*padded(accuracies), _BOTTOM, _TOP)
    drawing = Drawing(_BOTTOM + 36)
    drawing.y_axis(y, _LEFT, _RIGHT, ticks(y.low, y.high))
    drawing.line(_LEFT, y(needed), _RIGHT, y(needed), "limit")
    drawing.text(_RIGHT, y(needed) - 3, f"a loss of the tolerance: {needed:.3f}", "end small")
    front = front_of(scored)
    drawing.path([(x(item["kept_linears"]), y(item["accuracy"])) for item in front], "middle pruned-line")
    for item in scored:
        kind = "pruned" if item["feasible"] else "refused" if item["complete"] else "refused faint"
        tip = f"{item['plan']}, {_RUNGS[item['rung']]}: keeps {item['kept_linears']:.1%}, {item['accuracy']:.3f}"
        drawing.circle(x(item["kept_linears"]), y(item["accuracy"]), 4, kind, tip)
    drawing.circle(x(plan.kept_linears), y(plan.accuracy), 8, "chosen", f"{plan.id}, fused")
    drawing.circle(x(1.0), y(plan.dense_accuracy), 4, "dense", f"dense: {plan.dense_accuracy:.3f}")
    drawing.x_axis(x, _BOTTOM, "kept of the linears' parameters", _per_cent())
    told = "; ".join(f"{item['kept_linears']:.1%} at {item['accuracy']:.3f}" for item in front)
    return drawing.render(
        name,
        "Plans scored on the selection split, by size and accuracy",
        f"{len(scored)} scores, of which {sum(item['feasible'] for item in scored)} accepted. "
        f"No plan beats: {told}. Fused: {plan.kept_linears:.1%} at {plan.accuracy:.3f}. "
        f"Dense: {plan.dense_accuracy:.3f}.",
    )


def progress_figure(name: str, scored: Scored) -> Markup:
    """Draw the smallest plan that was accepted after each score.

    Args:
        name: Identifier of the figure.
        scored: What the search scored, at least one plan, in order.

    Returns:
        The figure.
    """
    best, smallest = [], 1.0
    for item in scored:
        smallest = min(smallest, item["kept_linears"]) if item["feasible"] else smallest
        best.append(smallest)
    x, y = Scale(0, len(scored), _LEFT, _RIGHT), Scale(0.0, 1.0, 124.0, _TOP)
    drawing = Drawing(160)
    drawing.y_axis(y, _LEFT, _RIGHT, _per_cent())
    places = [(x(0), y(1.0))]
    for number, value in enumerate(best, 1):
        places += [(x(number), places[-1][1]), (x(number), y(value))]
    drawing.path(places, "middle pruned-line")
    for number, item in enumerate(scored, 1):
        drawing.circle(x(number), y(item["kept_linears"]), 3, "pruned" if item["feasible"] else "refused")
    marks = [(value, f"{value:,.0f}") for value, _ in ticks(0, len(scored), 6) if value == int(value)]
    drawing.x_axis(x, 124.0, "plans scored on the selection split", marks)
    told = ", ".join(f"{value:.1%}" for value in dict.fromkeys(best))
    return drawing.render(name, "Smallest plan accepted so far", f"Kept of the linears' parameters, falling: {told}.")


def divergence_figure(name: str, scored: Scored, plan: PruningPlan) -> Markup:
    """Draw the plans that were compared by KL divergence on few prompts, by size.

    Args:
        name: Identifier of the figure.
        scored: Their records, at least one.
        plan: The plan that was fused.

    Returns:
        The figure.
    """
    logs = [math.log10(max(item["divergence"], 1e-9)) for item in scored]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    x, y = Scale(0.0, 1.0, _LEFT, _RIGHT), Scale(low, max(high, low + 1), 124.0, _TOP)
    drawing = Drawing(160)
    every = max((high - low) // 4, 1)
    drawing.y_axis(y, _LEFT, _RIGHT, [(power, f"{10.0**power:g}") for power in range(low, high + 1, every)])
    for item, log in zip(scored, logs, strict=True):
        drawing.circle(x(item["kept_linears"]), y(log), 3, "chosen" if item["plan"] == plan.id else "pruned faint")
    drawing.x_axis(x, 124.0, "kept of the linears' parameters", _per_cent())
    least, most = min(item["kept_linears"] for item in scored), max(item["kept_linears"] for item in scored)
    return drawing.render(
        name,
        "KL divergence from the dense model on few prompts, nats",
        f"{len(scored)} plans that keep {least:.1%} to {most:.1%}; divergences {10 ** min(logs):.1e} to "
        f"{10 ** max(logs):.1e} nats.",
    )


def _per_cent() -> list[tuple[float, str]]:
    return [(0.0, "0"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "100 %")]

"""Figures of what was measured: stages, scores, times and sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from sieve_edge.report.record import RunRecord
from sieve_edge.report.stages import Step
from sieve_edge.report.svg import WIDTH, Drawing, Scale, padded, ticks
from sieve_edge.report.tables import MODELS, SPLITS, Result

_LEFT, _RIGHT = 92.0, WIDTH - 12.0
_ROW = 26.0
DOTS = 120
"""Samples that are drawn as dots; of more, evenly chosen ones."""


def steps_figure(name: str, steps: Sequence[Step]) -> Markup:
    """Draw what each stage did to the parameters and to the accuracy on the selection split.

    Args:
        name: Identifier of the figure.
        steps: Stages that know either, in order.

    Returns:
        The figure.
    """
    shown = [step for step in steps if step.kept_model is not None or step.accuracy is not None]
    height = 30 + _ROW * len(shown) + 34
    drawing = Drawing(height)
    kept, score = Scale(0.0, 1.0, 74.0, 204.0), _score_scale([step.accuracy for step in shown], 226.0, _RIGHT)
    drawing.text(kept.start, 14, "parameters kept", "small strong")
    drawing.text(score.start, 14, "accuracy, selection", "small strong")
    before_kept, before = 1.0, None
    for row, step in enumerate(shown):
        y = 30 + _ROW * row
        drawing.text(0, y + 13, step.stage)
        if step.kept_model is not None:
            _drop(drawing, kept, y, before_kept, step.kept_model)
            before_kept = step.kept_model
        if step.accuracy is not None:
            if before is not None:
                drawing.line(score(before), y + 9, score(step.accuracy), y + 9, "whisker pruned-line")
            dot = "dense" if row == 0 else "pruned"
            drawing.circle(score(step.accuracy), y + 9, 4, dot, f"{step.stage}: {step.accuracy:.3f}")
            drawing.text(score(step.accuracy), y - 1, f"{step.accuracy:.3f}", "mid small")
            before = step.accuracy
    bottom = 30 + _ROW * len(shown)
    drawing.x_axis(kept, bottom, "of the model's", [(0.0, "0"), (0.5, "50 %"), (1.0, "100 %")])
    drawing.x_axis(score, bottom, "", ticks(score.low, score.high, 3))
    told = "; ".join(f"{step.stage}: {_told(step)}" for step in shown)
    return drawing.render(name, "What each stage did to parameters and accuracy", told)


def _told(step: Step) -> str:
    kept = None if step.kept_model is None else f"keeps {step.kept_model:.1%} of the parameters"
    accuracy = None if step.accuracy is None else f"accuracy {step.accuracy:.3f}"
    return ", ".join(each for each in (kept, accuracy) if each is not None)


def accuracy_figure(name: str, result: Result) -> Markup:
    """Draw the scores of both models with their intervals, and what could be had without reading.

    Args:
        name: Identifier of the figure.
        result: Result of a build.

    Returns:
        The figure.
    """
    accuracy = result["accuracy"]
    rows = [(model, split, accuracy[model][split]) for split in SPLITS for model in MODELS]
    baseline = accuracy["baseline"]["score"]
    ends = [end for _, _, of in rows for end in of["interval95"]]
    scale = Scale(*padded([baseline, *ends]), _LEFT, _RIGHT)
    bottom = 24 + _ROW * len(rows)
    drawing = Drawing(bottom + 42)
    drawing.line(scale(baseline), 4, scale(baseline), bottom, "limit")
    drawing.text(scale(baseline) + 4, 10, accuracy["baseline"]["is"], "small")
    for row, (model, split, of) in enumerate(rows):
        y = 38 + _ROW * row
        drawing.text(0, y + 4, f"{model}, {split}")
        _whisker(drawing, scale, y, of["interval95"], of["corrected"], model)
        drawing.text(scale(of["corrected"]), y - 7, f"{of['corrected']:.3f}", "mid small")
    drawing.x_axis(scale, bottom + 4, result["metric"].replace("_", " "), ticks(scale.low, scale.high))
    told = "; ".join(
        f"{model} on {split}: {of['corrected']:.3f}, 95 % interval {of['interval95'][0]:.3f} to "
        f"{of['interval95'][1]:.3f}"
        for model, split, of in rows
    )
    return drawing.render(name, "Scores with 95 % intervals", f"{told}; {accuracy['baseline']['is']}: {baseline:.3f}")


def loss_figure(name: str, result: Result, tolerance: float) -> Markup:
    """Draw the relative losses with their intervals, against the tolerance.

    Args:
        name: Identifier of the figure.
        result: Result of a build.
        tolerance: Allowed relative loss.

    Returns:
        The figure.
    """
    loss = result["loss"]
    rows: list[tuple[str, float, Sequence[float] | None]] = [
        ("selection", loss["selection"], None),
        ("test", loss["test"], loss["interval95"]),
        ("transfer", loss["transfer"], loss["transfer_interval95"]),
    ]
    ends = [end for _, _, bounds in rows for end in bounds or ()]
    scale = Scale(*padded([0.0, tolerance, *ends, *(value for _, value, _ in rows)]), _LEFT, _RIGHT)
    bottom = 28 + _ROW * len(rows)
    drawing = Drawing(bottom + 40)
    drawing.line(scale(0.0), 4, scale(0.0), bottom, "grid")
    drawing.line(scale(tolerance), 4, scale(tolerance), bottom, "limit")
    drawing.text(scale(tolerance) - 4, 10, f"tolerance {tolerance:.1%}", "end small")
    for row, (split, value, bounds) in enumerate(rows):
        y = 42 + _ROW * row
        drawing.text(0, y + 4, split)
        _whisker(drawing, scale, y, bounds, value, "pruned")
        drawing.text(scale(value), y - 7, f"{value:.1%}", "mid small")
    marks = [(value, f"{value:.0%}") for value, _ in ticks(scale.low, scale.high)]
    drawing.x_axis(scale, bottom + 4, "relative loss (less is better)", marks)
    told = "; ".join(
        f"{split}: {value:.2%}" + (f", 95 % interval {bounds[0]:.2%} to {bounds[1]:.2%}" if bounds else "")
        for split, value, bounds in rows
    )
    return drawing.render(name, "Relative losses with 95 % intervals", f"{told}; tolerance {tolerance:.2%}")


def times_figure(name: str, title: str, samples: Mapping[str, Sequence[float]]) -> Markup:
    """Draw how measured times are distributed: dots, the middle half as a bar, and the median.

    Args:
        name: Identifier of the figure.
        title: What was timed.
        samples: Milliseconds of each measurement, of both models.

    Returns:
        The figure.
    """
    every = [value for model in MODELS for value in samples[model]]
    scale = Scale(*padded(every, 0.03), 52.0, _RIGHT)
    drawing = Drawing(118)
    told = []
    for row, model in enumerate(MODELS):
        values, y = np.asarray(samples[model]), 22.0 + 40 * row
        low, first, middle, third, high = (float(each) for each in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)))
        drawing.text(0, y + 4, model)
        drawing.line(scale(low), y, scale(high), y, f"whisker {model}-line")
        drawing.rect(scale(first), y - 6, scale(third) - scale(first), 12, f"box {model}-line")
        drawing.line(scale(middle), y - 9, scale(middle), y + 9, f"middle {model}-line")
        for number, value in enumerate(values[:: max(len(values) // DOTS, 1)]):
            # Spread, so that equal times lie side by side; by their number, so that the page is the same each time.
            drawing.circle(scale(float(value)), y + 16 + 6 * (number % 3 - 1) / 2, 1.6, f"{model} faint")
        drawing.text(scale(middle), y - 12, f"{middle:.1f}", "mid small")
        told.append(
            f"{model}: median {middle:.2f} ms, half within {first:.2f} to {third:.2f}, 95th percentile {high:.2f}"
        )
    drawing.x_axis(scale, 86, "milliseconds", ticks(scale.low, scale.high))
    return drawing.render(name, f"{title}, dense against pruned", f"{'; '.join(told)}; {len(every)} measurements")


def parts_figure(name: str, parts: Mapping[str, Mapping[str, float]]) -> Markup:
    """Draw where the bytes of both artifacts are.

    Args:
        name: Identifier of the figure.
        parts: Model -> part -> MiB.

    Returns:
        The figure.
    """
    names = list(parts["dense"])
    scale = Scale(0.0, max(value for of in parts.values() for value in of.values()), _LEFT, _RIGHT - 56)
    drawing = Drawing(34.0 * len(names) + 6)
    told = []
    for row, part in enumerate(names):
        for place, model in enumerate(MODELS):
            y, size = 4 + 34.0 * row + 14 * place, parts[model].get(part, 0.0)
            drawing.rect(scale.start, y, scale(size) - scale.start, 12, model, f"{part}, {model}: {size:.1f} MiB")
            drawing.text(scale(size) + 4, y + 10, f"{size:.1f} MiB", "small")
            told.append(f"{part}, {model}: {size:.1f} MiB")
        drawing.text(0, 22 + 34.0 * row, part)
    return drawing.render(name, "Size by part, dense against pruned", "; ".join(told))


def scores_figure(name: str, labels: Sequence[str], records: Sequence[RunRecord], split: str) -> Markup:
    """Draw the scores of several builds on one split, with their intervals.

    Args:
        name: Identifier of the figure.
        labels: Name of each build.
        records: Builds.
        split: Split.

    Returns:
        The figure.
    """
    found = [record.result["accuracy"] for record in records]
    rows = [(label, of, model) for label, of in zip(labels, found, strict=True) for model in MODELS]
    scale = Scale(*padded([end for _, of, model in rows for end in of[model][split]["interval95"]]), 12.0, _RIGHT)
    bottom = 6 + (16 + 2 * 16.0) * len(labels)
    drawing = Drawing(bottom + 36)
    told = []
    for row, (label, of, model) in enumerate(rows):
        top = 6 + 48.0 * (row // 2)
        if model == MODELS[0]:
            drawing.text(0, top + 10, label, "strong")
        y, score = top + 22 + 14 * (row % 2), of[model][split]
        _whisker(drawing, scale, y, score["interval95"], score["corrected"], model)
        told.append(f"{label}, {model}: {score['corrected']:.3f}")
    drawing.x_axis(scale, bottom, "score", ticks(scale.low, scale.high))
    return drawing.render(name, f"Scores on {split}, 95 % intervals", "; ".join(told))


def pairs_figure(name: str, title: str, labels: Sequence[str], values: Sequence[tuple[float, float]]) -> Markup:
    """Draw one figure of several builds, dense above pruned.

    Args:
        name: Identifier of the figure.
        title: What it shows, with the unit.
        labels: Name of each build.
        values: ``(dense, pruned)`` of each.

    Returns:
        The figure.
    """
    scale = Scale(0.0, max(max(pair) for pair in values), 0.0, _RIGHT - 52)
    drawing = Drawing(50.0 * len(labels))
    told = []
    for row, (label, pair) in enumerate(zip(labels, values, strict=True)):
        top = 50.0 * row
        drawing.text(0, top + 12, label, "strong")
        for place, (model, value) in enumerate(zip(MODELS, pair, strict=True)):
            drawing.rect(0, top + 18 + 14 * place, scale(value), 12, model, f"{label}, {model}: {value:.1f}")
            drawing.text(scale(value) + 4, top + 28 + 14 * place, f"{value:.1f}", "small")
            told.append(f"{label}, {model}: {value:.1f}")
    return drawing.render(name, title, "; ".join(told))


def _score_scale(scores: Sequence[Any], start: float, stop: float) -> Scale:
    known = [score for score in scores if score is not None] or [0.0, 1.0]
    return Scale(*padded(known, 0.25), start, stop)


def _drop(drawing: Drawing, scale: Scale, y: float, before: float, after: float) -> None:
    drawing.rect(scale.start, y, scale(after) - scale.start, 16, "pruned" if after < 1.0 else "dense")
    if after < before:
        drawing.rect(scale(after), y, scale(before) - scale(after), 16, "gone")
    if scale(after) - scale.start > 48:
        drawing.text(scale(after) - 4, y + 12, f"{after:.1%}", "end small on-bar")
    else:
        drawing.text(scale(after) + 4, y + 12, f"{after:.1%}", "small")


def _whisker(
    drawing: Drawing, scale: Scale, y: float, bounds: Sequence[float] | None, value: float, model: str
) -> None:
    if bounds is not None:
        drawing.line(scale(bounds[0]), y, scale(bounds[1]), y, f"whisker {model}-line")
        for end in bounds:
            drawing.line(scale(end), y - 4, scale(end), y + 4, f"whisker {model}-line")
    drawing.circle(scale(value), y, 4, model)

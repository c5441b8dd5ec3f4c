"""Figures of the plan: the heat map, means by layer and by kind, and a matrix's error against its rank."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from sieve_edge.report.kept import KeptMatrix, kinds, mean_kept
from sieve_edge.report.svg import WIDTH, Drawing, Scale, ticks

BAND = 16
"""Layers of one band of the heat map: as many cells as can hold a readable number on a phone."""

STEPS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Upper ends of the heat map's colours; what stays dense has one of its own."""

LEAST_ERROR = 1e-6
"""Errors below are drawn at the bottom."""

CURVE_X, CURVE_Y = (40.0, WIDTH - 20.0), (150.0, 16.0)
"""Ends of the axes of the error figure; ``page.js`` draws on the same."""


def shade(kept: float) -> str:
    """Choose the class of a kept fraction.

    Args:
        kept: The fraction.

    Returns:
        Class of ``page.css``.
    """
    return "heat5" if kept >= 1.0 else f"heat{next(number for number, end in enumerate(STEPS) if kept <= end)}"


def heat_figure(name: str, matrices: Sequence[KeptMatrix], bottlenecks: Sequence[str]) -> Markup:
    """Draw the kept fraction of every matrix, in bands of layers.

    Args:
        name: Identifier of the figure.
        matrices: Matrices.
        bottlenecks: Those that no good plan prunes.

    Returns:
        The figure.

    Source:
        LLM-Sieve, figures 6 and 16.
    """
    rows, layers = kinds(matrices), sorted({item.layer for item in matrices})
    by_name = {item.name: item for item in matrices}
    left, cell, high = 54.0, (WIDTH - 54.0) / BAND, 20.0
    bands = [layers[start : start + BAND] for start in range(0, len(layers), BAND)]
    band_height = 16 + high * len(rows) + 12
    drawing = Drawing(band_height * len(bands))
    for band, of in enumerate(bands):
        top = 16 + band_height * band
        for column, layer in enumerate(of):
            drawing.text(left + cell * (column + 0.5), top - 4, str(layer), "mid tiny")
        for row, kind in enumerate(rows):
            drawing.text(0, top + high * row + 14, kind)
            for column, layer in enumerate(of):
                item = by_name.get(f"{layer}.{kind}")
                if item is not None:
                    place = (left + cell * column, top + high * row)
                    _cell(drawing, place, (cell - 1, high - 1), item, item.name in bottlenecks)
    told = ", ".join(f"{kind} keeps {share:.0%} on average" for kind, share in mean_kept(matrices, "kind").items())
    marked = f"Bottlenecks: {', '.join(bottlenecks)}." if bottlenecks else "No bottleneck."
    return drawing.render(
        name,
        "Kept fraction of each matrix, layer by layer, in per cent",
        f"{len(layers)} layers: {told}. {marked} The table below has every figure.",
    )


def layers_figure(name: str, matrices: Sequence[KeptMatrix]) -> Markup:
    """Draw the mean kept fraction of each layer.

    Args:
        name: Identifier of the figure.
        matrices: Matrices.

    Returns:
        The figure.

    Source:
        LLM-Sieve, figure 15.
    """
    means = mean_kept(matrices, "layer")
    layers = sorted(means)
    y = Scale(0.0, 1.0, 128.0, 12.0)
    x = Scale(layers[0] - 0.5, layers[-1] + 0.5, 40.0, WIDTH - 8.0)
    width = (x.stop - x.start) / len(layers)
    drawing = Drawing(164)
    drawing.y_axis(y, 40.0, WIDTH - 8.0, [(0.0, "0"), (0.5, "50 %"), (1.0, "100 %")])
    for layer in layers:
        top = y(means[layer])
        drawing.rect(
            x(layer) - 0.42 * width, top, 0.84 * width, y.start - top, "pruned", f"{layer}: {means[layer]:.1%}"
        )
    marks = [(value, f"{value:.0f}") for value, _ in ticks(layers[0], layers[-1], 6) if value == int(value)]
    drawing.x_axis(x, y.start, "layer", marks)
    told = ", ".join(f"{layer}: {means[layer]:.0%}" for layer in layers)
    return drawing.render(name, "Mean kept fraction by layer", told)


def kinds_figure(name: str, matrices: Sequence[KeptMatrix]) -> Markup:
    """Draw the mean kept fraction of each kind of matrix.

    Args:
        name: Identifier of the figure.
        matrices: Matrices.

    Returns:
        The figure.

    Source:
        LLM-Sieve, figure 14.
    """
    means = mean_kept(matrices, "kind")
    scale = Scale(0.0, 1.0, 60.0, WIDTH - 50.0)
    drawing = Drawing(26.0 * len(means) + 34)
    for row, kind in enumerate(kinds(matrices)):
        y = 4 + 26.0 * row
        drawing.text(0, y + 13, kind)
        drawing.rect(scale.start, y, scale(means[kind]) - scale.start, 18, "pruned", f"{kind}: {means[kind]:.1%}")
        drawing.text(scale(means[kind]) + 4, y + 13, f"{means[kind]:.1%}", "small")
    marks = [(0.0, "0"), (0.5, "50 %"), (1.0, "100 %")]
    drawing.x_axis(scale, 26.0 * len(means) + 4, "", marks)
    told = ", ".join(f"{kind}: {means[kind]:.1%}" for kind in kinds(matrices))
    return drawing.render(name, "Mean kept fraction by kind of matrix", told)


def error_figure(name: str, item: KeptMatrix) -> Markup:
    """Draw the error of one matrix against its rank; ``page.js`` redraws it for others.

    Args:
        name: Identifier of the figure.
        item: The matrix.

    Returns:
        The figure.
    """
    x, y = Scale(0.0, item.most, *CURVE_X), Scale(math.log10(LEAST_ERROR), 0.0, *CURVE_Y)
    drawing = Drawing(CURVE_Y[0] + 36)
    drawing.y_axis(y, x.start, x.stop, [(0.0, "1"), (-2.0, "0.01"), (-4.0, "1e-4"), (-6.0, "1e-6")])
    chosen = item.most if item.rank is None else item.rank
    drawing.line(x(chosen), y.stop, x(chosen), y.start, "limit curve-chosen")
    drawing.path([(x(rank), y(log_error(error))) for rank, error in item.errors], "curve pruned-line")
    for share in (0.0, 0.5, 1.0):
        drawing.text(
            x.start + share * (x.stop - x.start), y.start + 15, f"{share * item.most:g}", "mid small curve-tick"
        )
    drawing.text((x.start + x.stop) / 2, y.start + 29, "rank", "mid small")
    return drawing.render(
        name,
        "Error against rank",
        "The share of a matrix's output energy that is lost at each rank; see the line below.",
    )


def curves(matrices: Sequence[KeptMatrix]) -> Mapping[str, object]:
    """List what ``page.js`` needs to draw the error of any matrix.

    Args:
        matrices: Matrices.

    Returns:
        JSON-compatible.
    """
    drawn = {
        item.name: {
            "most": item.most,
            "rank": item.rank,
            "told": error_told(item),
            "points": [(rank, round(log_error(error), 3)) for rank, error in item.errors],
        }
        for item in matrices
    }
    return {"x": CURVE_X, "y": CURVE_Y, "least": math.log10(LEAST_ERROR), "matrices": drawn}


def error_told(item: KeptMatrix) -> str:
    """Say what a matrix loses at the rank of the plan.

    Args:
        item: The matrix.

    Returns:
        One sentence.
    """
    if item.rank is None:
        return f"{item.name} stays dense, of {item.most} ranks; nothing is lost."
    error = dict(item.errors).get(item.rank)
    lost = "not recorded" if error is None else f"{error:.2e}"
    return f"{item.name}: rank {item.rank} of {item.most} keeps {item.kept:.1%}; share of the energy lost: {lost}."


def log_error(error: float) -> float:
    """Take the logarithm of an error, none below the least that is drawn.

    Args:
        error: The error.

    Returns:
        Base 10.
    """
    return math.log10(max(error, LEAST_ERROR))


def _cell(
    drawing: Drawing, place: tuple[float, float], size: tuple[float, float], item: KeptMatrix, bottleneck: bool
) -> None:
    kind = shade(item.kept)
    rank = "dense" if item.rank is None else f"rank {item.rank}"
    tip = f"{item.name}: {item.kept:.1%} kept, {rank}{', a bottleneck' if bottleneck else ''}"
    drawing.rect(*place, *size, f"{kind}{' bottleneck' if bottleneck else ''}", tip)
    written = "all" if item.kept >= 1.0 else f"{100 * item.kept:.0f}"
    drawing.text(place[0] + size[0] / 2, place[1] + 14, written, f"mid tiny {kind}-text")

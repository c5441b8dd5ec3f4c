"""Figures as SVG: shapes in a narrow coordinate system, so that they are readable on a phone, coloured by the page.

Colours and fonts are classes of ``page.css``, so one figure serves light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 360.0
"""Units of a figure's width: about the pixels of a phone, where a unit is a pixel."""


@dataclass(frozen=True)
class Scale:
    """A linear map from values to places.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: Place of ``low``.
        stop: Place of ``high``.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Find the place of a value.

        Args:
            value: The value.

        Returns:
            Its place; of one outside the nearer end.
        """
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)


class Drawing:
    """A figure under construction; ``y`` grows downwards."""

    def __init__(self, height: float) -> None:
        """Start an empty figure.

        Args:
            height: Its height, in units.
        """
        self._height = height
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        """Draw a rectangle.

        Args:
            x: Left edge.
            y: Upper edge.
            width: Width.
            height: Height.
            kind: Class.
            tip: Text that a pointer shows.
        """
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{height:.1f}"'
        self._add("rect", place, kind, tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line.

        Args:
            x1: Start.
            y1: Start.
            x2: End.
            y2: End.
            kind: Class.
        """
        self._add("line", f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"', kind)

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw a line through points.

        Args:
            points: ``(x, y)`` of each.
            kind: Class.
        """
        self._add("polyline", f'points="{write_points(points)}"', kind)

    def circle(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        """Draw a dot.

        Args:
            x: Centre.
            y: Centre.
            radius: Radius.
            kind: Class.
            tip: Text that a pointer shows.
        """
        self._add("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"', kind, tip)

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Write a text on one line.

        Args:
            x: Where it starts; with class ``end`` where it ends, with ``mid`` its middle.
            y: Base line.
            text: The text.
            kind: Classes.
        """
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{_class(kind)}>{escape(text)}</text>')

    def x_axis(self, scale: Scale, y: float, title: str, marks: Sequence[tuple[float, str]]) -> None:
        """Draw a horizontal axis.

        Args:
            scale: Values to x.
            y: Its place.
            title: What it shows, with the unit.
            marks: ``(value, text)`` of each tick.
        """
        self.line(scale.start, y, scale.stop, y, "axis")
        for value, text in marks:
            self.line(scale(value), y, scale(value), y + 4, "axis")
            self.text(scale(value), y + 15, text, "mid small")
        self.text((scale.start + scale.stop) / 2, y + 29, title, "mid small")

    def y_axis(self, scale: Scale, x: float, end: float, marks: Sequence[tuple[float, str]]) -> None:
        """Draw horizontal grid lines with their values.

        Args:
            scale: Values to y.
            x: Where lines start; values stand left of it.
            end: Where lines end.
            marks: ``(value, text)`` of each.
        """
        for value, text in marks:
            self.line(x, scale(value), end, scale(value), "grid")
            self.text(x - 4, scale(value) + 4, text, "end small")

    def render(self, name: str, title: str, told: str) -> Markup:
        """Finish the figure.

        Args:
            name: Identifier, unique on the page.
            title: What it shows, in few words.
            told: What can be seen in it, for those who do not see it.

        Returns:
            The SVG element.
        """
        head = (
            f'<svg class="figure" id="{name}" viewBox="0 0 {WIDTH:.0f} {self._height:.0f}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc">'
            f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(told)}</desc>'
        )
        return Markup(head + "".join(self._parts) + "</svg>")  # noqa: S704 (every text in it was escaped above)

    def _add(self, tag: str, place: str, kind: str, tip: str = "") -> None:
        inner = f"<title>{escape(tip)}</title>" if tip else ""
        self._parts.append(f"<{tag} {place}{_class(kind)}>{inner}</{tag}>")


def write_points(points: Sequence[tuple[float, float]]) -> str:
    """Write places for a line.

    Args:
        points: ``(x, y)`` of each.

    Returns:
        Value of the attribute ``points``.
    """
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def ticks(low: float, high: float, count: int = 4) -> list[tuple[float, str]]:
    """Choose round values on an axis.

    Args:
        low: Smallest value.
        high: Largest value.
        count: About how many.

    Returns:
        ``(value, text)`` of each, within the axis.
    """
    if high <= low:
        return [(low, f"{low:g}")]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * (1 - 1e-9))
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(each * step, f"{each * step:,.{digits}f}") for each in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Find the ends of an axis that holds all values with room around them.

    Args:
        values: Values, at least one.
        share: Room at each end, as a fraction of what they span.

    Returns:
        ``(low, high)``.
    """
    low, high = min(values), max(values)
    room = share * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""

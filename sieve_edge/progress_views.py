"""How progress is shown on stderr: bars on a terminal, lines elsewhere, JSON lines for programs, or warnings only."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Show = Literal["auto", "quiet", "json"]
_LINE_EVERY_SECONDS = 15.0
_JSON_EVERY_SECONDS = 1.0


def on_terminal() -> bool:
    """Say whether stderr is a terminal.

    Returns:
        True if somebody can see a bar move.
    """
    return Console(stderr=True).is_terminal


@dataclass(eq=False)
class Task:
    """Something that takes a while.

    Attributes:
        name: What is being done.
        total: How many units there are; at least what is done, and one more where only an estimate was given.
        unit: What a unit is, in the plural.
        done: Units that are finished.
        figures: Name -> figure that changes as the task goes on, such as a loss; None where it is no number.
    """

    name: str
    total: int
    unit: str
    done: int = 0
    figures: dict[str, float | None] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def add(self, units: int) -> None:
        """Count what was finished.

        Args:
            units: How many.
        """
        self.done += units
        self.total = max(self.total, self.done)

    def facts(self) -> dict[str, Any]:
        """Say how far it is.

        Returns:
            JSON-compatible; ``left_seconds`` is None before anything is done, and ``figures`` only there if it has
            any.
        """
        seconds = time.monotonic() - self._began
        left = seconds / self.done * (self.total - self.done) if self.done else None
        facts: dict[str, Any] = {"task": self.name, "done": self.done, "total": self.total, "unit": self.unit}
        facts |= {"seconds": round(seconds, 1), "left_seconds": None if left is None else round(left, 1)}
        return facts | ({"figures": dict(self.figures)} if self.figures else {})


class View(Protocol):
    """A way to show progress."""

    def say(self, line: str, warning: bool) -> None:
        """Show a line; a warning is shown always."""

    def stage(self, facts: Mapping[str, Any]) -> None:
        """Show that a stage begins, needs nothing, or is done."""

    def best(self, facts: Mapping[str, Any]) -> None:
        """Show the best plan so far."""

    def begin(self, task: Task) -> None:
        """Show a task."""

    def advance(self, task: Task) -> None:
        """Show how far it is."""

    def end(self, task: Task) -> None:
        """Show it no more."""


class Quiet:
    """Warnings only."""

    def __init__(self) -> None:
        """Open stderr."""
        self.console = Console(stderr=True, emoji=False)

    def say(self, line: str, warning: bool) -> None:
        """See ``View``."""
        if warning:
            self._print(line)

    def stage(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""

    def best(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""

    def begin(self, task: Task) -> None:
        """See ``View``."""

    def advance(self, task: Task) -> None:
        """See ``View``."""

    def end(self, task: Task) -> None:
        """See ``View``."""

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Lines(Quiet):
    """A line now and then, for logs."""

    def __init__(self) -> None:
        """Open stderr."""
        super().__init__()
        self._last: dict[Task, float] = {}

    def say(self, line: str, warning: bool) -> None:  # noqa: ARG002 (all lines are shown)
        """See ``View``."""
        self._print(line)

    def stage(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""
        if facts["state"] == "done":
            self._print(f"  {facts['stage']} took {facts['seconds']:.0f} s")
        else:
            what = facts["writes"] if facts["state"] == "running" else facts["state"]
            self._print(f"[{facts['number']}/{facts['of']}] {facts['stage']}: {what}")

    def best(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""
        self._print(
            f"  best plan so far: {facts['plan']} keeps {facts['kept_linears']:.3f} of the linears, "
            f"loss {facts['loss']:.2%}"
        )

    def begin(self, task: Task) -> None:
        """See ``View``."""
        self._last[task] = time.monotonic()

    def advance(self, task: Task) -> None:
        """See ``View``."""
        now = time.monotonic()
        if task.done < task.total and now - self._last[task] < _LINE_EVERY_SECONDS:
            return
        self._last[task] = now
        self._print(f"  {told(task.facts())}")

    def end(self, task: Task) -> None:
        """See ``View``."""
        del self._last[task]


class Bars(Lines):
    """A bar for every task that goes on, below the lines."""

    def __init__(self) -> None:
        """Open stderr."""
        super().__init__()
        self._bar: Bar | None = None
        self._ids: dict[Task, TaskID] = {}
        self._best = ""

    def best(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""
        self._best = f", best plan keeps {facts['kept_linears']:.3f}"
        for task, task_id in self._ids.items():
            self._show(task, task_id)
        if self._bar is not None:
            self._bar.refresh()
        super().best(facts)

    def stage(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""
        super().stage(facts)
        self._best = ""

    def begin(self, task: Task) -> None:
        """See ``View``."""
        if self._bar is None:
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn())
            times = (TextColumn("{task.fields[unit]}"), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, *times, console=self.console, transient=True)
            self._bar.start()
        self._ids[task] = self._bar.add_task(task.name, total=task.total, unit=task.unit)

    def advance(self, task: Task) -> None:
        """See ``View``."""
        self._show(task, self._ids[task])

    def end(self, task: Task) -> None:
        """See ``View``."""
        task_id = self._ids.pop(task)
        if self._bar is not None:
            self._bar.remove_task(task_id)
            if not self._ids:
                self._bar.stop()
                self._bar = None

    def _show(self, task: Task, task_id: TaskID) -> None:
        # The first of nested tasks lasts as long as the stage does.
        outermost = next(iter(self._ids)) is task
        if self._bar is not None:
            name = task.name + told_figures(task.figures) + (self._best if outermost else "")
            self._bar.update(task_id, completed=task.done, total=task.total, description=name)


class JsonLines(Quiet):
    """A JSON document a line."""

    def __init__(self) -> None:
        """Open stderr."""
        super().__init__()
        self._last: dict[Task, float] = {}

    def say(self, line: str, warning: bool) -> None:
        """See ``View``."""
        self._event("message", {"level": "warning" if warning else "info", "text": line.strip()})

    def stage(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""
        self._event("stage", facts)

    def best(self, facts: Mapping[str, Any]) -> None:
        """See ``View``."""
        self._event("best", facts)

    def begin(self, task: Task) -> None:
        """See ``View``."""
        self._progress(task)

    def advance(self, task: Task) -> None:
        """See ``View``."""
        if task.done == task.total or time.monotonic() - self._last[task] >= _JSON_EVERY_SECONDS:
            self._progress(task)

    def end(self, task: Task) -> None:
        """See ``View``."""
        del self._last[task]

    def _progress(self, task: Task) -> None:
        self._last[task] = time.monotonic()
        self._event("progress", task.facts())

    def _event(self, name: str, facts: Mapping[str, Any]) -> None:
        self._print(json.dumps({"event": name, **facts}, separators=(",", ":")))


def told(facts: Mapping[str, Any]) -> str:
    """Tell how far a task is.

    Args:
        facts: From ``Task.facts``.

    Returns:
        Name, units, times in seconds, and figures.
    """
    left = "" if facts["left_seconds"] is None else f", {facts['left_seconds']:.0f} s left"
    figures = told_figures(facts.get("figures", {}))
    return f"{facts['task']}: {facts['done']}/{facts['total']} {facts['unit']}, {facts['seconds']:.0f} s{left}{figures}"


def told_figures(figures: Mapping[str, float | None]) -> str:
    """Tell a task's figures, to be put after its name or its times.

    Args:
        figures: Name -> figure.

    Returns:
        ``", loss 0.1234"`` for each.
    """
    return "".join(f", {name} {'nan' if value is None else f'{value:.4f}'}" for name, value in figures.items())

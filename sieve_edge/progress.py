"""Progress on stderr: a bar per task on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_EVERY_SECONDS = 15.0


class Progress:
    """Shows what a stage is doing; one object serves a whole build."""

    def __init__(self, console: Console | None = None) -> None:
        """Choose where to show it.

        Args:
            console: Console on stderr; None for one of our own.
        """
        self.console = console or Console(stderr=True)

    def say(self, line: str) -> None:
        """Print a line above any bar.

        Args:
            line: Plain text.
        """
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show the progress of one task.

        Args:
            name: What is being done.
            total: How many units there are.
            unit: What a unit is, in the plural.

        Yields:
            A function that is told how many units were just finished.
        """
        if not self.console.is_terminal:
            yield self._lines(name, total, unit)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self.console, transient=True) as bar:
            task_id = bar.add_task(name, total=total)
            yield lambda units: bar.update(task_id, advance=units)

    def _lines(self, name: str, total: int, unit: str) -> Callable[[int], None]:
        started = last = time.monotonic()
        done = 0

        def advance(units: int) -> None:
            nonlocal done, last
            done += units
            now = time.monotonic()
            if done < total and now - last < _LINE_EVERY_SECONDS:
                return
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            self.say(f"  {name}: {done}/{total} {unit}, {now - started:.0f} s, {left:.0f} s left")

        return advance

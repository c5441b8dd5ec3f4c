"""Progress of a build: stages, tasks and the best plan so far, shown on stderr and kept for ``sieve-edge status``."""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from sieve_edge.files import disk_errors, write_json
from sieve_edge.progress_views import Bars, JsonLines, Lines, Quiet, Show, Task, View, on_terminal

STATUS = "status.json"
_KEEP_EVERY_SECONDS = 1.0


class Progress:
    """Says what a build is doing; one object serves a whole build."""

    def __init__(self, show: Show = "auto") -> None:
        """Choose how to show it.

        Args:
            show: ``"auto"``: bars on a terminal, lines elsewhere; ``"quiet"``: warnings only; ``"json"``: a JSON
                document a line.
        """
        self._view: View = {"auto": Bars if on_terminal() else Lines, "quiet": Quiet, "json": JsonLines}[show]()
        self._tasks: list[Task] = []
        self._state: dict[str, Any] = {}
        self._file: Path | None = None
        self._kept = 0.0

    def say(self, line: str) -> None:
        """Say something that is good to know.

        Args:
            line: Plain text.
        """
        self._view.say(line, warning=False)
        self._keep(said=line.strip())

    def warn(self, line: str) -> None:
        """Say something that a user must know, even one who asked for quiet.

        Args:
            line: Plain text.
        """
        self._view.say(line, warning=True)
        self._keep(said=line.strip())

    def stage(self, number: int, count: int, verb: str, writes: str, current: bool) -> None:
        """Begin a stage.

        Args:
            number: Which one, from 1.
            count: How many there are in this build.
            verb: Its name.
            writes: What it makes.
            current: Whether that is there already, so that nothing is to be done.
        """
        facts = {"stage": verb, "number": number, "of": count, "writes": writes}
        self._view.stage({**facts, "state": "up to date" if current else "running"})
        self._keep(now=True, **facts, stage_began=time.time())

    def stage_done(self, verb: str, seconds: float) -> None:
        """End a stage that had something to do.

        Args:
            verb: Its name.
            seconds: How long it took.
        """
        self._view.stage({"stage": verb, "state": "done", "seconds": seconds})

    def best(self, plan: str, kept_linears: float, score: float, loss: float) -> None:
        """Say which plan is the best so far.

        Args:
            plan: Its id.
            kept_linears: Fraction of the linears' parameters that it keeps.
            score: The task's score on the selection split.
            loss: Relative loss there.
        """
        facts = {"plan": plan, "kept_linears": kept_linears, "score": score, "loss": loss}
        self._view.best(facts)
        self._keep(best=facts)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show the progress of one task; tasks may be nested.

        Args:
            name: What is being done.
            total: How many units there are; where that is an estimate, more may follow.
            unit: What a unit is, in the plural.

        Yields:
            A function that is told how many units were just finished.
        """
        task = Task(name, total, unit)
        self._tasks.append(task)
        self._view.begin(task)

        def advance(units: int) -> None:
            task.add(units)
            self._view.advance(task)
            self._keep()

        try:
            yield advance
        finally:
            self._tasks.remove(task)
            self._view.end(task)

    def figures(self, **figures: float) -> None:
        """Say figures of the task that began last, such as a loss; they are shown with its next units.

        Args:
            **figures: Name -> figure; those that were said before stay.
        """
        # JSON has no number for what is none.
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._tasks[-1].figures.update(known)

    @contextmanager
    def kept_in(self, root: Path) -> Iterator[None]:
        """Keep what is known in ``status.json`` of a run while it is built, for another process to read.

        Args:
            root: The run's folder.

        Yields:
            Nothing.

        Raises:
            KeyboardInterrupt: What ended the build, unchanged.
            BaseException: What ended the build, unchanged.
        """
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        process = psutil.Process()
        self._file, self._state = root / STATUS, {"host": socket.gethostname(), "process": os.getpid()}
        self._keep(now=True, state="running", began=time.time(), process_created=process.create_time())
        try:
            yield
        except KeyboardInterrupt:
            self._keep(now=True, state="interrupted")
            raise
        except BaseException as error:
            self._keep(now=True, state="failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        else:
            self._keep(now=True, state="finished")
        finally:
            self._file = None

    def _keep(self, now: bool = False, **facts: Any) -> None:
        """Remember facts; write them at most once a second, so that telling costs nothing."""
        self._state |= facts
        if self._file is None or not (now or time.monotonic() - self._kept >= _KEEP_EVERY_SECONDS):
            return
        self._kept = time.monotonic()
        tasks = [task.facts() for task in self._tasks]
        write_json(self._file, {**self._state, "tasks": tasks, "updated": time.time()})

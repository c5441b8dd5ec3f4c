"""Scores candidates on a Ray cluster; the only importer of ray, and only when it is used.

A request gives the same outcome in every worker, and outcomes are handed out in the order of the requests, so neither
the number of workers nor the loss of one changes a search.
"""

import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from sieve_edge.compute import INSTALL_RAY
from sieve_edge.errors import EnvironmentMissing, SieveError
from sieve_edge.progress import Progress
from sieve_edge.search.ray_worker import PACKAGES, compute_facts
from sieve_edge.search.scoring import Outcome, Request

PLACE_SECONDS = 300.0
"""How long a search waits while it has no worker at all."""
_LOSSES_PER_WORKER = 3
"""Losses in a row, without an outcome between them, that end a search."""


def import_ray() -> Any:
    """Import ray.

    Returns:
        The module.

    Raises:
        EnvironmentMissing: If it is not installed, or does not load.
    """
    try:
        import ray
    except ImportError as error:
        raise EnvironmentMissing(f"ray cannot be imported ({error}); run: {INSTALL_RAY}") from error
    return ray


class RayExecutor:
    """Hands requests to whichever worker is free; a lost worker is replaced and its request handed out again.

    Attributes:
        count: Workers asked for.
        lost: Workers lost so far.
        other_processors: Processors of workers that differ from this process's.
    """

    def __init__(self, ray: Any, actor: Any, given: Sequence[Any], count: int, device: str, progress: Progress) -> None:
        """Start the workers; which of them are there shows in ``run``.

        Args:
            ray: The module, connected.
            actor: ``Worker`` as an actor class, with its resources.
            given: References to the arguments of ``Worker``.
            count: Number of workers.
            device: Torch device.
            progress: Where progress is shown.
        """
        self.count = count
        self.lost = 0
        self.other_processors: set[str] = set()
        self._ray, self._actor, self._given = ray, actor, given
        self._progress = progress
        self._mine = compute_facts(device)
        errors = ray.exceptions
        self._losses = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        )
        self._in_a_row = 0
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._since = time.monotonic()
        for _ in range(count):
            self._start()

    def run(self, requests: Sequence[Request]) -> Iterator[Outcome]:
        """Score candidates; see ``Executor``.

        Args:
            requests: What to score.

        Yields:
            Outcomes, in the order of the requests.

        Raises:
            SieveError: If the cluster is lost.
        """
        if not requests:
            return
        self._since = time.monotonic()
        waiting = list(range(len(requests)))  # a heap: a request that comes back is the first to go out again
        running: dict[Any, tuple[Any, int]] = {}
        done: dict[int, Outcome] = {}
        try:
            with self._progress.task(f"score {requests[0].rung}", len(requests), "candidates") as advance:
                for index in range(len(requests)):
                    while index not in done:
                        self._hand_out(requests, waiting, running)
                        self._collect(waiting, running, done)
                    self._hand_out(requests, waiting, running)
                    yield done.pop(index)
                    advance(1)
        except self._ray.exceptions.RayError as error:
            raise SieveError(
                f"Ray: {_last_line(error)}; what was scored is kept, and the same command goes on from there"
            ) from error
        finally:
            # Where the caller stopped early, what still runs is not waited for: a worker queues what comes next.
            self._idle += [worker for worker, _ in running.values()]

    def _hand_out(self, requests: Sequence[Request], waiting: list[int], running: dict[Any, tuple[Any, int]]) -> None:
        while waiting and self._idle:
            worker, index = self._idle.pop(0), heapq.heappop(waiting)
            running[worker.run.remote(requests[index])] = (worker, index)

    def _collect(self, waiting: list[int], running: dict[Any, tuple[Any, int]], done: dict[int, Outcome]) -> None:
        """Wait until a worker is there, is done or is lost."""
        left = None if running else max(PLACE_SECONDS - (time.monotonic() - self._since), 0.0)
        ready, _ = self._ray.wait([*running, *self._starting], num_returns=1, timeout=left)
        if not ready:
            raise EnvironmentMissing(
                f"Ray: no worker could be placed within {PLACE_SECONDS:.0f} s; `ray status` shows what the cluster has"
            )
        if ready[0] in self._starting:
            self._welcome(ready[0])
            return
        worker, index = running.pop(ready[0])
        try:
            done[index] = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            raise error.cause from error
        except self._losses as error:
            heapq.heappush(waiting, index)
            self._replace(worker, error)
        else:
            self._idle.append(worker)
            self._in_a_row = 0
        self._since = time.monotonic()

    def _start(self) -> None:
        worker = self._actor.remote(*self._given)
        self._starting[worker.facts.remote()] = worker

    def _welcome(self, ref: Any) -> None:
        """Let a worker take part if it computes with what this process computes with."""
        worker = self._starting.pop(ref)
        try:
            facts = self._ray.get(ref)
        except self._losses as error:
            if getattr(error, "actor_init_failed", False):
                raise SieveError(f"a Ray worker cannot start: {_last_line(error)}") from error
            self._replace(worker, error)
            return
        for package in PACKAGES:
            if facts[package] != self._mine[package]:
                raise EnvironmentMissing(
                    f"a Ray worker has {package} {facts[package]}, this process {self._mine[package]}; on every node "
                    f"run: pip install {package}=={self._mine[package]}"
                )
        if facts["processor"] != self._mine["processor"]:
            self.other_processors.add(facts["processor"])
        self._idle.append(worker)
        self._since = time.monotonic()

    def _replace(self, worker: Any, error: Exception) -> None:
        self.lost += 1
        self._in_a_row += 1
        if self._in_a_row > _LOSSES_PER_WORKER * self.count:
            raise SieveError(f"Ray workers are lost again and again, the last one because: {_last_line(error)}")
        self._progress.warn(
            f"  ray: lost a worker ({_last_line(error)}); its work is done again, and another one starts"
        )
        with suppress(Exception):  # it may be gone already, in more than one way
            self._ray.kill(worker)
        self._start()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]

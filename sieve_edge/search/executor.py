"""Where candidates are scored: in this process, or on a Ray cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from sieve_edge.compute import Compute
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.load import LoadedModel
from sieve_edge.progress import Progress
from sieve_edge.search.scoring import Outcome, Request, Scorer, ScoringData


class Executor(Protocol):
    """Scores requests, wherever."""

    def run(self, requests: Sequence[Request]) -> Iterator[Outcome]:
        """Score candidates.

        Args:
            requests: What to score.

        Returns:
            Outcomes, in the order of the requests, each as soon as it and those before it are there.
        """
        ...


class Workers(Protocol):
    """Those who score the candidates of a search."""

    def executor(self, loaded: LoadedModel, bank: ProjectionBank, data: ScoringData, progress: Progress) -> Executor:
        """Give them the model and the bank.

        Args:
            loaded: Dense model.
            bank: Its projections.
            data: Prompts and settings.
            progress: Where progress is shown.

        Returns:
            The executor.
        """
        ...

    def metrics(self) -> dict[str, Any]:
        """Say who they were.

        Returns:
            JSON-compatible, for the manifest.
        """
        ...

    def fallbacks(self) -> tuple[str, ...]:
        """Say what was not as asked for.

        Returns:
            Lines for the manifest.
        """
        ...


@contextmanager
def open_workers(compute: Compute, threads: int) -> Iterator[Workers]:
    """Open what scores candidates, and close it when the search ends, however it ends.

    Args:
        compute: What the user asked for.
        threads: Torch threads of a worker.

    Yields:
        The workers.
    """
    if compute.executor == "local":
        yield LocalWorkers()
        return
    from sieve_edge.search.ray_cluster import RayCluster

    with RayCluster(compute, threads) as cluster:
        yield cluster


class LocalWorkers:
    """This process."""

    def executor(self, loaded: LoadedModel, bank: ProjectionBank, data: ScoringData, progress: Progress) -> Executor:
        """Make the executor; see ``Workers``.

        Args:
            loaded: Dense model.
            bank: Its projections.
            data: Prompts and settings.
            progress: Where progress is shown.

        Returns:
            The executor.
        """
        return LocalExecutor(Scorer(loaded.model, loaded.specs, bank, data), progress)

    def metrics(self) -> dict[str, Any]:
        """Say who they were; see ``Workers``.

        Returns:
            Executor and number of workers.
        """
        return {"executor": "local", "workers": 1}

    def fallbacks(self) -> tuple[str, ...]:
        """Say what was not as asked for; see ``Workers``.

        Returns:
            Nothing.
        """
        return ()


class LocalExecutor:
    """Scores one after the other in this process."""

    def __init__(self, scorer: Scorer, progress: Progress) -> None:
        """Keep the scorer.

        Args:
            scorer: The only worker.
            progress: Where progress is shown.
        """
        self._scorer = scorer
        self._progress = progress

    def run(self, requests: Sequence[Request]) -> Iterator[Outcome]:
        """Score candidates; see ``Executor``.

        Args:
            requests: What to score.

        Yields:
            Outcomes, in the order of the requests.
        """
        if not requests:
            return
        with self._progress.task(f"score {requests[0].rung}", len(requests), "candidates") as advance:
            for request in requests:
                yield self._scorer.run(request)
                advance(1)

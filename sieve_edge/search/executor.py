"""Where candidates are scored: in this process, or on a Ray cluster."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from sieve_edge.progress import Progress
from sieve_edge.search.scoring import Outcome, Request, Scorer


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

"""Candidates as the strategies see them: scored on the rung asked for, each once, with a verdict."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.levels import Ranks, kept_params
from sieve_edge.model.refitted import refit_file
from sieve_edge.model.tensors import write_tensors
from sieve_edge.progress import Progress
from sieve_edge.search.acceptance import Acceptance, Reference, Verdict
from sieve_edge.search.executor import Executor
from sieve_edge.search.history import History
from sieve_edge.search.scoring import Outcome, Request, Stop
from sieve_edge.search.space import plan_id
from sieve_edge.task.written import is_judged


@dataclass(frozen=True)
class Scored:
    """A candidate with its verdict.

    Attributes:
        ranks: The candidate.
        rung: ``"labels"``, or ``"refit"`` for after refit.
        kept_linears: Fraction of the linears' parameters.
        complete: Whether all examples were scored.
        verdict: What it is worth.
    """

    ranks: Ranks
    rung: str
    kept_linears: float
    complete: bool
    verdict: Verdict


class Candidates:
    """Scores candidates through an executor, and remembers them.

    Attributes:
        tokens: Tokens forwarded for all that was asked so far, as from an empty cache.
        scored: Verdicts so far, by plan id and rung.
        on_scored: Told of every verdict.
    """

    def __init__(
        self,
        specs: Sequence[MatrixSpec],
        storage: str,
        executor: Executor,
        history: History,
        reference: Reference,
        acceptance: Acceptance,
        refits: Path,
        progress: Progress,
    ) -> None:
        """Keep what scoring needs.

        Args:
            specs: Matrices of the model.
            storage: ``"pair"``, ``"pivoted"`` or ``"width"``, to count what is kept.
            executor: Where candidates are scored.
            history: Where scores are kept.
            reference: The selection split and the dense model's answers.
            acceptance: When a candidate is good enough.
            refits: Folder for refitted factors.
            progress: Where progress is shown.
        """
        self.specs = tuple(specs)
        self._storage = storage
        self._linears = sum(spec.params for spec in specs)
        self._executor = executor
        self.history = history
        self._reference = reference
        self.acceptance = acceptance
        self._refits = refits
        self._progress = progress
        self.tokens = 0.0
        self.scored: dict[tuple[str, str], Scored] = {}
        self.on_scored: Callable[[Scored], None] = lambda _: None
        self._asked: set[tuple[str, str]] = set()

    def kept(self, ranks: Ranks) -> float:
        """Say what a candidate keeps.

        Args:
            ranks: The candidate.

        Returns:
            Fraction of the linears' parameters.
        """
        return kept_params(self.specs, ranks, self._storage) / self._linears

    def divergences(self, plans: Sequence[Ranks]) -> list[float]:
        """Score candidates by the KL divergence on few prompts.

        Args:
            plans: Candidates.

        Returns:
            Nats per answer position, in the same order.
        """
        dense = dict.fromkeys((spec.name for spec in self.specs), None)
        # The dense model comes first, so that its own pass over the prompts is counted too.
        records = list(self._records([dense, *plans], "divergence", None))[1:]
        return [record["divergence"] for record in records]

    def verdicts(self, plans: Sequence[Ranks], rung: str = "labels", give_up: bool = True) -> list[Verdict]:
        """Score candidates on the selection split.

        Args:
            plans: Candidates.
            rung: ``"labels"``, or ``"refit"`` for after refit.
            give_up: Whether a hopeless candidate may stop after the first part.

        Returns:
            Verdicts, in the same order.
        """
        rule = self.acceptance
        stop = Stop(rule.tolerance, rule.stop_confidence) if give_up else None
        verdicts = []
        for ranks, record in zip(plans, self._records(plans, rung, stop), strict=True):
            verdict = self._reference.judge(record["answers"], rule)
            verdicts.append(verdict)
            scored = Scored(dict(ranks), rung, self.kept(ranks), self._complete(record), verdict)
            self.scored[plan_id(ranks), rung] = scored
            after = " after refit" if rung == "refit" else ""
            self._progress.say(
                f"  plan {plan_id(ranks)} keeps {self.kept(ranks):.3f}: {verdict.accuracy:.4f}{after}, "
                f"loss {verdict.loss:.2%}, {verdict.word}"
            )
            self.on_scored(scored)
        return verdicts

    @property
    def judged(self) -> bool:
        """Whether a judge grades; it is shown only candidates that hold by a metric."""
        return is_judged(self._reference.exam)

    @property
    def dense_accuracy(self) -> float:
        """The dense model's score on the selection split, of labels after prior correction."""
        return self._reference.dense.score

    def drop_refits(self, keep: Ranks | None) -> None:
        """Delete refitted factors that are not needed any more.

        Args:
            keep: Plan whose factors stay; None for none.
        """
        for file in self._refits.glob("refit-*.safetensors"):
            if keep is None or file != refit_file(self._refits, plan_id(keep)):
                file.unlink()

    def _records(self, plans: Sequence[Ranks], rung: str, stop: Stop | None) -> Iterator[dict[str, Any]]:
        """Yield a record for each plan as soon as it is there; what is missing is scored, each plan once."""
        wanted: dict[str, Request] = {}
        for ranks in plans:
            record = self.history.find(ranks, rung)
            if record is None or not self._enough(record, stop):
                seen = () if record is None else record["answers"]
                wanted.setdefault(plan_id(ranks), Request(ranks, rung, seen, stop))
        outcomes = self._executor.run(list(wanted.values()))
        for ranks in plans:
            request = wanted.pop(plan_id(ranks), None)
            if request is not None:
                self._add(request, next(outcomes))
            record = self.history.records[plan_id(ranks), rung]
            if (plan_id(ranks), rung) not in self._asked:
                self._asked.add((plan_id(ranks), rung))
                self.tokens += record["tokens"]
            yield record

    def _enough(self, record: dict[str, Any], stop: Stop | None) -> bool:
        """Say whether a record that stopped early would stop under this rule too."""
        if record["rung"] == "divergence" or self._complete(record):
            return True
        return stop is not None and record["stop"] == [stop.tolerance, stop.confidence]

    def _complete(self, record: dict[str, Any]) -> bool:
        return len(record["answers"]) == len(self._reference.dense_answers)

    def _add(self, request: Request, outcome: Outcome) -> None:
        earlier = self.history.find(request.ranks, request.rung)
        spent = {"tokens": outcome.tokens, "seconds": outcome.seconds}
        if earlier:
            spent = {name: value + earlier[name] for name, value in spent.items()}
        values: dict[str, Any] = {"kept_linears": self.kept(request.ranks), **spent}
        if request.rung == "divergence":
            values["divergence"] = outcome.value
        else:
            values["answers"] = outcome.answers
            values["stop"] = None if request.stop is None else [request.stop.tolerance, request.stop.confidence]
        if request.rung == "refit":
            values["refits"] = list(outcome.refits)
            write_tensors(refit_file(self._refits, plan_id(request.ranks)), outcome.factors)
        self.history.add(request.ranks, request.rung, values)

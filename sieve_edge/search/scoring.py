"""Scores candidates: what one worker does, in this process or in another.

A worker holds the dense model, a switchable copy that shares its weights, and the prompts as tokens. It keeps no state
between requests, so the same request gives the same outcome in any worker.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.levels import Ranks
from sieve_edge.model.load import shared_copy
from sieve_edge.model.refit import Refit, refit
from sieve_edge.model.resume import ResumableModel
from sieve_edge.model.switchable import Bank, install_switchable_, switch_
from sieve_edge.protocols import Float32, Int64
from sieve_edge.task.divergence import Answered, answer_distributions, divergence
from sieve_edge.task.evaluate import hopeless
from sieve_edge.task.exam import Answers, Exam


@dataclass(frozen=True)
class Stop:
    """When a candidate is given up after the first part of the examples."""

    tolerance: float
    confidence: float


@dataclass(frozen=True)
class Request:
    """What is to be scored.

    Attributes:
        ranks: The candidate.
        rung: ``"divergence"``, ``"labels"`` (answers) or ``"refit"`` (answers after refit).
        seen: Answers to the first part, if they are known.
        stop: When to give up after the first part; None for never.
    """

    ranks: Ranks
    rung: str
    seen: Answers = ()
    stop: Stop | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        value: KL divergence, in nats; 0 on the other rungs.
        answers: Answers to the selection split, JSON-compatible; those to the first part if the candidate was given up.
        tokens: Tokens that were forwarded, partial passes pro rata.
        seconds: Time that it took.
        refits: What refit did to each matrix.
        factors: Refitted factors, by tensor name.
    """

    value: float = 0.0
    answers: Answers = ()
    tokens: float = 0.0
    seconds: float = 0.0
    refits: Sequence[Mapping[str, Any]] = ()
    factors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoringData:
    """What a worker needs beside the model and the bank.

    Attributes:
        exam: The selection split, graded without a judge.
        dense_answers: The dense model's answers to it.
        part: Examples of the first part.
        answered: Prompts of the divergence rung.
        refit_prefix: Tokens that all prompts of refit share.
        refit_tails: Batches of their other tokens.
        refit: Settings of refit.
        batch_tokens: Tokens of one batch.
        threads: Torch threads.
        device: Torch device.
    """

    exam: Exam
    dense_answers: Answers
    part: int
    answered: Sequence[Answered]
    refit_prefix: Sequence[int]
    refit_tails: Sequence[Sequence[Sequence[int]]]
    refit: Refit
    batch_tokens: int
    threads: int
    device: str


class Scorer:
    """One worker."""

    def __init__(self, model: Any, specs: Sequence[MatrixSpec], bank: Bank, data: ScoringData) -> None:
        """Make a switchable copy of the model, which shares its weights.

        Args:
            model: Dense model.
            specs: Its matrices.
            bank: Their projections.
            data: Prompts and settings.
        """
        torch.set_num_threads(data.threads)
        self._dense = model
        self._specs = tuple(specs)
        self._data = data
        self._switchable = shared_copy(model)
        self._leaders = install_switchable_(self._switchable, specs, bank)
        self._counted = CountingModel(ResumableModel(self._switchable, data.device))
        self._distributions: list[Float32] | None = None

    def run(self, request: Request) -> Outcome:
        """Score one candidate on one rung.

        Args:
            request: What to score.

        Returns:
            The outcome.
        """
        started = time.perf_counter()
        outcome = self._divergence(request) if request.rung == "divergence" else self._accuracy(request)
        return replace(outcome, seconds=round(time.perf_counter() - started, 3))

    def _accuracy(self, request: Request) -> Outcome:
        self._counted.tokens = 0.0
        refits: list[dict[str, Any]] = []
        factors: dict[str, Tensor] = {}
        switch_(self._leaders, request.ranks)
        if request.rung == "refit":
            data = self._data
            done = refit(self._dense, self._switchable, self._leaders, data.refit_prefix, data.refit_tails, data.refit)
            refits, factors, self._counted.tokens = done.records, done.factors, done.tokens
        try:
            answers = self._answers(request)
        finally:
            for leader in self._leaders:
                leader.refitted = None
        return Outcome(answers=answers, tokens=self._counted.tokens, refits=refits, factors=factors)

    def _divergence(self, request: Request) -> Outcome:
        data, model = self._data, self._counted.model
        if self._distributions is None:
            switch_(self._leaders, dict.fromkeys((spec.name for spec in self._specs), None))
            with model.recording():
                batches = answer_distributions(model, data.answered, data.batch_tokens)
                self._distributions = [batch for _, batch in batches]
        self._counted.tokens = 0.0
        switch_(self._leaders, request.ranks)
        first = next((spec.layer for spec in self._specs if request.ranks[spec.name] is not None), 0)
        with model.resuming(first):
            value = divergence(self._counted, self._distributions, data.answered, data.batch_tokens)
        share = 1.0 - first / (self._specs[-1].layer + 1)
        return Outcome(value=value, tokens=self._counted.tokens * share)

    def _answers(self, request: Request) -> Answers:
        data = self._data
        answers = list(request.seen) or self._take(0, data.part)
        count = len(answers)
        if request.stop is not None and data.part < len(data.exam.prompts):
            first = data.exam.part(0, count)
            dense, pruned = first.grade(data.dense_answers[:count]), first.grade(answers)
            if hopeless(dense, pruned, request.stop.tolerance, request.stop.confidence):
                return answers
        return answers + self._take(count, len(data.exam.prompts))

    def _take(self, start: int, stop: int) -> list[Any]:
        if start >= stop:
            return []
        return self._data.exam.part(start, stop).take(self._counted, self._data.batch_tokens)


class CountingModel:
    """Counts the tokens that a model is given."""

    def __init__(self, model: ResumableModel) -> None:
        """Start at zero.

        Args:
            model: Model that does the work.
        """
        self.model = model
        self.tokens = 0.0

    def forward(
        self, input_ids: Int64, attention_mask: Int64, position_ids: Int64, past: Sequence[Any], logits_to_keep: int
    ) -> tuple[Float32, list[Any]]:
        """Run the model; see ``TextModel``.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T).
            position_ids: (B, T).
            past: Present of an earlier call, or empty.
            logits_to_keep: Last positions whose logits are wanted; 0 for all.

        Returns:
            ``(logits, present)``.
        """
        self.tokens += input_ids.size
        return self.model.forward(input_ids, attention_mask, position_ids, past, logits_to_keep)

    def repeat(self, past: Sequence[Any], batch: int) -> list[Any]:
        """Give every row of a batch the same past.

        Args:
            past: Present of a call with one row.
            batch: B.

        Returns:
            Views with B rows.
        """
        return self.model.repeat(past, batch)

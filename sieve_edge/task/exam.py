"""Exams: a split's examples in a model's tokens, how a model takes them, and what its answers are worth.

Label tasks compare the likelihoods of the labels; other tasks let the model write, and grade what it wrote. The rest of
the pipeline sees no difference: answers are JSON values, grades are numbers. Dimension key: N examples, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sieve_edge.protocols import Float64, Int64, Progress, TextModel
from sieve_edge.task.evaluate import Grades, fit_prior, grade_labels
from sieve_edge.task.likelihood import label_log_likelihoods

Answers = Sequence[Any]
"""One answer for each example: its label log-likelihoods as a list, or the text that the model wrote."""

Prior = Sequence[float]
"""Bias of each label; empty for none."""

DENSE_ANSWERS = "dense_answers.json"
"""File of the dense model's answers on the selection split, in calibrate's folder."""

RAW: Prior = ()
"""No correction of a model's liking for a label."""


class Exam(Protocol):
    """The examples of one split in a model's tokens."""

    @property
    def prompts(self) -> Sequence[list[int]]:
        """Token ids of each prompt."""
        ...

    def part(self, start: int, stop: int) -> "Exam":
        """Take some of the examples.

        Args:
            start: First example.
            stop: The one after the last.

        Returns:
            An exam of these only.
        """
        ...

    def take(self, model: TextModel, batch_tokens: int, progress: Progress | None = None) -> list[Any]:
        """Let a model answer.

        Args:
            model: Model in any runtime.
            batch_tokens: Tokens of one batch.
            progress: Told how many examples were just answered.

        Returns:
            Its answers, JSON-compatible.
        """
        ...

    def ended(self, ids: list[int]) -> bool:
        """Say whether an answer of the model's own is complete.

        Args:
            ids: Its tokens so far.

        Returns:
            True after what ends an answer.
        """
        ...

    def prior(self, answers: Answers) -> list[float]:
        """Fit what corrects a model's liking for a label.

        Args:
            answers: Its answers.

        Returns:
            Bias of each label; empty where answers are written.
        """
        ...

    def grade(self, answers: Answers, prior: Prior | None = None) -> Grades:
        """Grade answers to the first examples, or to all.

        Args:
            answers: Answers in the order of the examples.
            prior: Bias of each label, empty for none; None to fit it on these answers.

        Returns:
            What they are worth.
        """
        ...


@dataclass(frozen=True)
class LabelExam:
    """An exam whose answers are one of a few labels.

    Attributes:
        prompts: Token ids of each prompt.
        answer_ids: Token ids of each label.
        labels: True label of each example.
        ends: Tokens that end an answer.
    """

    prompts: Sequence[list[int]]
    answer_ids: Sequence[list[int]]
    labels: Sequence[int]
    ends: tuple[int, ...] = ()

    def part(self, start: int, stop: int) -> "LabelExam":
        """Take some of the examples; see ``Exam``.

        Args:
            start: First example.
            stop: The one after the last.

        Returns:
            An exam of these only.
        """
        return replace(self, prompts=self.prompts[start:stop], labels=self.labels[start:stop])

    def take(self, model: TextModel, batch_tokens: int, progress: Progress | None = None) -> list[Any]:
        """Score every label of every prompt; see ``Exam``.

        Args:
            model: Model in any runtime.
            batch_tokens: Tokens of one batch.
            progress: Told how many examples were just scored.

        Returns:
            Natural log-likelihoods, (N, K) as nested lists.
        """
        scores: list[Any] = label_log_likelihoods(model, self.prompts, self.answer_ids, batch_tokens, progress).tolist()
        return scores

    def ended(self, ids: list[int]) -> bool:
        """Say whether an answer of the model's own is complete.

        Args:
            ids: Its tokens so far.

        Returns:
            True after a token that ends it.
        """
        return ids[-1] in self.ends

    def prior(self, answers: Answers) -> list[float]:
        """Fit one bias per label; see ``fit_prior``.

        Args:
            answers: Label log-likelihoods.

        Returns:
            The biases.
        """
        bias: list[float] = fit_prior(_matrix(answers), self._truth(answers)).tolist()
        return bias

    def grade(self, answers: Answers, prior: Prior | None = None) -> Grades:
        """Grade label log-likelihoods; see ``Exam``.

        Args:
            answers: Label log-likelihoods.
            prior: Bias of each label, empty for none; None to fit it on these answers.

        Returns:
            Right or wrong of each, grouped by true label.
        """
        scores_NK, labels_N = _matrix(answers), self._truth(answers)
        bias_K = np.asarray(self.prior(answers) if prior is None else prior, dtype=np.float64)
        return grade_labels(scores_NK, labels_N, bias_K)

    def _truth(self, answers: Answers) -> Int64:
        return np.asarray(self.labels[: len(answers)], dtype=np.int64)


def _matrix(answers: Answers) -> Float64:
    return np.asarray(answers, dtype=np.float64)

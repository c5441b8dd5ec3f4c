"""Exams whose answers the model writes, graded by a metric or a judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sieve_edge.protocols import Asked, Judge, Progress, TextModel
from sieve_edge.task.evaluate import Grades
from sieve_edge.task.exam import Answers, Exam, Prior
from sieve_edge.task.generate import Ending, answer_greedily
from sieve_edge.task.metrics import credit
from sieve_edge.task_config import Task


@dataclass(frozen=True)
class WrittenExam:
    """An exam whose answers the model writes.

    Attributes:
        prompts: Token ids of each prompt.
        references: Right answers of each example.
        questions: Prompt of each example, for a judge.
        task: The task.
        metric: What grades an answer, unless a judge does.
        tokenizer: Tokenizer of the model.
        ends: Tokens that end an answer.
        judge: Who grades the answers; None for the metric.
    """

    prompts: Sequence[list[int]]
    references: Sequence[tuple[str, ...]]
    questions: Sequence[str]
    task: Task
    metric: str
    tokenizer: Tokenizer
    ends: tuple[int, ...]
    judge: Judge | None = None

    def part(self, start: int, stop: int) -> "WrittenExam":
        """Take some of the examples; see ``Exam``.

        Args:
            start: First example.
            stop: The one after the last.

        Returns:
            An exam of these only.
        """
        return replace(
            self,
            prompts=self.prompts[start:stop],
            references=self.references[start:stop],
            questions=self.questions[start:stop],
        )

    def take(self, model: TextModel, batch_tokens: int, progress: Progress | None = None) -> list[Any]:
        """Let the model write; see ``Exam``.

        Args:
            model: Model in any runtime.
            batch_tokens: Tokens of one batch.
            progress: Told how many examples were just answered.

        Returns:
            Texts, without what ended them and space around them.
        """
        new_tokens = self.task.max_new_tokens
        found = answer_greedily(model, self.prompts, new_tokens, self.ended, batch_tokens, progress)
        return [self._ending.text(ids) for ids in found]

    def ended(self, ids: list[int]) -> bool:
        """Say whether an answer is complete; see ``Exam``.

        Args:
            ids: Its tokens so far.

        Returns:
            True after a token that ends it or a stop string.
        """
        return self._ending.reached(ids)

    @property
    def _ending(self) -> Ending:
        return Ending(self.tokenizer, self.ends, self.task.stop)

    def prior(self, answers: Answers) -> list[float]:  # noqa: ARG002 (nothing is corrected)
        """Fit nothing: a written answer is taken as it is.

        Args:
            answers: Texts.

        Returns:
            An empty list.
        """
        return []

    def grade(self, answers: Answers, prior: Prior | None = None) -> Grades:  # noqa: ARG002
        """Grade texts; see ``Exam``.

        Args:
            answers: Texts.
            prior: Not used.

        Returns:
            Worth of each, one group.
        """
        asked = [Asked(*each) for each in zip(self.questions, answers, self.references, strict=False)]
        return grade_written(self.task, self.metric, self.judge, asked)


def grade_written(task: Task, metric: str, judge: Judge | None, asked: Sequence[Asked]) -> Grades:
    """Grade written answers.

    Args:
        task: The task.
        metric: What grades an answer, unless a judge does.
        judge: Who grades; None for the metric.
        asked: Answers with their questions and references.

    Returns:
        What they are worth, one group.
    """
    same = all_alike([one.answer for one in asked])
    if judge is not None:
        worth = judge.grade(asked)
    else:
        worth = [credit(task, metric, one.answer, one.references) for one in asked]
    return Grades(np.asarray(worth, dtype=np.float64), np.zeros(len(asked), dtype=np.int64), same)


def all_alike(answers: Answers) -> bool:
    """Say whether one answer was written to everything.

    Args:
        answers: Texts.

    Returns:
        True for several answers that are the same.
    """
    return len(answers) > 1 and len(set(answers)) == 1


def screened(exam: Exam) -> Exam:
    """Take the judge from an exam, so that a metric grades it.

    Args:
        exam: Any exam.

    Returns:
        The exam without a judge.
    """
    return replace(exam, judge=None) if isinstance(exam, WrittenExam) else exam


def is_judged(exam: Exam) -> bool:
    """Say whether a judge grades an exam.

    Args:
        exam: Any exam.

    Returns:
        True if one does.
    """
    return isinstance(exam, WrittenExam) and exam.judge is not None

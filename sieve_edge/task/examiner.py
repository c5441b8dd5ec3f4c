"""Makes exams of a task's examples for a model's tokenizer."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sieve_edge.errors import TaskError
from sieve_edge.protocols import Judge
from sieve_edge.task.exam import Answers, Exam, LabelExam
from sieve_edge.task.examples import Example
from sieve_edge.task.prompts import write_prompt
from sieve_edge.task.written import WrittenExam, screened
from sieve_edge.task_config import JudgeSettings, Task

BASELINE_ANSWERS = 50
"""Most frequent reference answers that are tried as the one answer to everything."""


@dataclass(frozen=True)
class Examiner:
    """Makes exams of a task's examples.

    Attributes:
        task: The task.
        judge: Who grades written answers, for metric ``judge``.
    """

    task: Task
    judge: Judge | None = None

    def exam(self, examples: Sequence[Example], tokenizer: Tokenizer, ends: tuple[int, ...]) -> Exam:
        """Put examples into a model's tokens.

        Args:
            examples: Examples.
            tokenizer: The model's tokenizer.
            ends: Tokens that end an answer.

        Returns:
            The exam.
        """
        prompts = [tokenizer.encode(example.prompt).ids for example in examples]
        if not self.task.writes:
            labels = [example.label for example in examples]
            return LabelExam(prompts, label_ids(self.task, encoder(tokenizer)), labels, ends)
        references = [example.references for example in examples]
        questions = [example.question for example in examples]
        metric = self.screen
        return WrittenExam(prompts, references, questions, self.task, metric, tokenizer, ends, self.judge)

    def facts(self, example: Example) -> dict[str, Any]:
        """Say how the model is asked, for what travels with an artifact.

        Args:
            example: Any example; what all have before their question are the worked examples.

        Returns:
            JSON-compatible; where answers are written, ``labels`` is empty. ``shots`` are the worked examples as they
            come before the question: text, or the messages before the last one.
        """
        task = self.task
        asked = {"prompt": task.prompt, "messages": [each.model_dump() for each in task.messages]}
        written = {"max_new_tokens": task.max_new_tokens, "stop": list(task.stop)} if task.writes else {}
        return {
            "task": task.name,
            **asked,
            "metric": task.metric,
            "labels": [*map(list, task.labels.items())],
            **written,
            **({"shots": self._shots(example)} if task.shots else {}),
        }

    def _shots(self, example: Example) -> Any:
        if self.task.messages:
            return list(example.messages[len(self.task.messages) - 1 : -1])
        return example.prompt.removesuffix(write_prompt(self.task, example.values, ()))

    @property
    def screen(self) -> str:
        """Metric that grades without a judge."""
        if self.task.metric != "judge":
            return self.task.metric
        return (self.task.judge or JudgeSettings()).screen

    def agreement(self, exam: Exam, answers: Answers) -> dict[str, float] | None:
        """Say how often the judge and the exact comparison agree.

        Args:
            exam: An exam of this task.
            answers: Answers to it.

        Returns:
            Fraction of the judged answers on which both say the same, and the score by exact match; None without a
            judge or a verdict.
        """
        if not isinstance(exam, WrittenExam) or exam.judge is None:
            return None
        judged_N = exam.grade(answers).credits_N
        exact_N = replace(exam, judge=None, metric="exact_match").grade(answers).credits_N
        said_N = ~np.isnan(judged_N)
        if not said_N.any():
            return None
        return {"exact_match": float(exact_N.mean()), "agreement": float((judged_N == exact_N)[said_N].mean())}

    def baseline(self, exam: Exam, examples: Sequence[Example]) -> tuple[str, float]:
        """Find what could be had without reading the text.

        Args:
            exam: An exam of this task.
            examples: Its examples.

        Returns:
            What it is, and its score: a label for everything, or the best one of the most frequent reference answers,
            by the screen where a judge grades, which the name then says.
        """
        if not self.task.writes:
            return "always one label", 1.0 / len(self.task.labels)
        # The judge is spared: what the words alone are worth is near enough.
        plain, references = screened(exam), [example.references for example in examples]
        frequent = Counter(of_one[0] for of_one in references).most_common(BASELINE_ANSWERS)
        constants = sorted(constant for constant, _ in frequent)
        scored = [(plain.grade([constant] * len(references)).score, constant) for constant in constants]
        best, constant = max(scored)
        by = f" by {self.screen}" if self.task.metric == "judge" else ""
        return f"always '{constant}'{by}", best


def encoder(tokenizer: Tokenizer) -> Callable[..., list[int]]:
    """Make a function of a tokenizer like ``LoadedModel.encode``.

    Args:
        tokenizer: Tokenizer.

    Returns:
        Function of a text and ``special``, whether the start token is added.
    """

    def encode(text: str, special: bool = True) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    return encode


def check_lengths(task: Task, splits: Mapping[str, Sequence[Example]], tokenizer: Tokenizer, limit: int | None) -> None:
    """Refuse prompts that a model cannot hold.

    Args:
        task: The task.
        splits: Examples of every split.
        tokenizer: The model's tokenizer.
        limit: Positions that the model has; None for any number.

    Raises:
        TaskError: If a prompt with its answer is longer.
    """
    if limit is None:
        return
    answer = max(task.max_new_tokens, *map(len, label_ids(task, encoder(tokenizer))), 0)
    for split, examples in splits.items():
        longest = max(len(tokenizer.encode(example.prompt).ids) for example in examples) + answer
        if longest > limit:
            raise TaskError(
                f"task {task.name}: the longest prompt of split {split} and its answer take {longest} tokens, the "
                f"model holds {limit}; set max_words of its source"
            )


def label_ids(task: Task, encode: Callable[..., list[int]]) -> list[list[int]]:
    """Tokenize a task's labels.

    Args:
        task: The task.
        encode: ``LoadedModel.encode`` of the model that is asked.

    Returns:
        Token ids of each label.

    Raises:
        TaskError: If the tokens of one label begin those of another.
    """
    answers = list(task.labels.values())
    ids = [encode(answer, special=False) for answer in answers]
    for first, second in itertools.permutations(range(len(ids)), 2):
        if ids[second][: len(ids[first])] == ids[first]:
            raise TaskError(
                f"task {task.name}: label '{answers[first]}' is the beginning of '{answers[second]}' in this model's "
                "tokens, so the two cannot be told apart; choose other answers"
            )
    return ids

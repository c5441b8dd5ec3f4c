"""Where two models answer the same examples differently."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sieve_edge.task.evaluate import Grades, predict
from sieve_edge.task.exam import Answers, Prior
from sieve_edge.task.examples import Example
from sieve_edge.task_config import Task

SHOWN = 10


def find_differences(
    task: Task,
    examples: Sequence[Example],
    answers: Mapping[str, Answers],
    grades: Mapping[str, Grades],
    priors: Mapping[str, Prior],
) -> dict[str, Any]:
    """Find the examples that the dense and the pruned model answer differently.

    Args:
        task: The task.
        examples: Examples of one split.
        answers: Answers of ``dense`` and ``pruned``.
        grades: What they are worth, labels after prior correction.
        priors: Bias of each label, empty where answers are written.

    Returns:
        ``differing`` counts them, ``better`` and ``worse`` those on which the pruned model's answer is worth more or
        less; ``examples`` shows the first few, those whose worth differs most first, in the order of the split.
    """
    said = {name: _said(task, answers[name], priors[name]) for name in ("dense", "pruned")}
    # What has no verdict of a judge counts as neither better nor worse.
    gain_N = np.nan_to_num(grades["pruned"].credits_N - grades["dense"].credits_N)
    differing = [row for row in range(len(examples)) if said["dense"][row] != said["pruned"][row]]
    shown = sorted(differing, key=lambda row: (-abs(gain_N[row]), row))[:SHOWN]
    return {
        "of": len(examples),
        "differing": len(differing),
        "better": sum(bool(gain_N[row] > 0) for row in differing),
        "worse": sum(bool(gain_N[row] < 0) for row in differing),
        "examples": [
            {
                "question": examples[row].question,
                "text": examples[row].text,
                "right": _right(task, examples[row]),
                **{name: {"said": said[name][row], "worth": _worth(grades[name], row)} for name in said},
            }
            for row in shown
        ],
    }


def _said(task: Task, answers: Answers, prior: Prior) -> list[str]:
    if task.writes:
        return list(answers)
    labels = [answer.strip() for answer in task.labels.values()]
    scores_NK = np.asarray(answers, dtype=np.float64)
    bias_K = np.asarray(prior, dtype=np.float64)
    return [labels[row] for row in predict(scores_NK, bias_K if len(prior) else None)]


def _right(task: Task, example: Example) -> list[str]:
    """List the right answers."""
    if task.writes:
        return list(example.references)
    return [list(task.labels.values())[example.label].strip()]


def _worth(grades: Grades, row: int) -> float | None:
    """Read what an answer is worth; None without a verdict."""
    worth = float(grades.credits_N[row])
    return None if np.isnan(worth) else worth

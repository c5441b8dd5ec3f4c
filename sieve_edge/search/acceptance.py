"""When a candidate is good enough: its answers against the dense model's to the same examples."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sieve_edge.task.evaluate import MAX_UNJUDGED, Grades, graded_loss, loss_interval
from sieve_edge.task.exam import Answers, Exam
from sieve_edge.task.written import all_alike, is_judged, screened

_STATISTICS_SEED = 0

CONFIDENCES = {"pair": 0.8, "pivoted": 0.8, "width": 0.95}
"""Storage of pruned matrices -> confidence with which a plan must keep the task, where a recipe names none."""


@dataclass(frozen=True)
class Acceptance:
    """When a candidate's accuracy is good enough.

    Attributes:
        tolerance: Allowed relative loss.
        rule: ``"point"`` (the measured loss) or ``"interval"`` (the upper end of its one-sided paired interval).
        confidence: Of that interval.
        stop_confidence: With which a candidate must be too bad after the first part to be given up.
    """

    tolerance: float
    rule: str
    confidence: float
    stop_confidence: float

    def decisive(self, loss: float, bound: float) -> float:
        """Pick the figure that is compared with the tolerance.

        Args:
            loss: Measured relative loss.
            bound: Upper end of its interval.

        Returns:
            One of them.
        """
        return bound if self.rule == "interval" else loss

    def told(self) -> str:
        """Describe the rule, for the manifest.

        Returns:
            One phrase.
        """
        if self.rule == "point":
            return f"loss at most {self.tolerance:g}"
        return f"upper end of the {self.confidence:g} one-sided paired interval of the loss at most {self.tolerance:g}"


@dataclass(frozen=True)
class Verdict:
    """What a candidate is worth on the selection split.

    Attributes:
        accuracy: Score by the task's metric, of labels after prior correction; of the first part if it was given up.
            Where a judge was spared, what the loss leaves of the dense model's score, so that it is on one scale.
        loss: Relative to dense, on the same examples.
        bound: Upper end of the paired interval of the loss.
        feasible: Whether it may be chosen.
        collapsed: Whether it gives one answer to everything.
        word: Why, for people.
        silent: Whether the judge gave too few verdicts on it.
    """

    accuracy: float
    loss: float
    bound: float
    feasible: bool
    collapsed: bool
    word: str
    silent: bool = False


@dataclass(frozen=True)
class Reference:
    """The selection split, and the dense model's answers to it."""

    exam: Exam
    dense_answers: Answers

    def judge(self, answers: Answers, acceptance: Acceptance) -> Verdict:
        """Compare a candidate's answers with the dense model's to the same examples.

        A judge is asked about complete answers only: a candidate that was given up is graded by the metric that it
        was given up for. Nor is it asked about one answer to everything, whose loss is then taken as complete.

        Args:
            answers: Answers to the first examples, or to all.
            acceptance: When they are good enough.

        Returns:
            The verdict.
        """
        count = len(answers)
        complete = count == len(self.dense_answers)
        judged = is_judged(self.exam)
        if judged and complete and all_alike(answers):
            return Verdict(0.0, 1.0, 1.0, False, True, "collapsed")
        exam = self.exam if complete else screened(self.exam.part(0, count))
        dense, pruned = exam.grade(self.dense_answers[:count]), exam.grade(answers)
        if pruned.unjudged > MAX_UNJUDGED:
            return Verdict(0.0, 1.0, 1.0, False, pruned.collapsed, "too few verdicts", silent=True)
        quantiles = (0.0, acceptance.confidence)
        _, bound = loss_interval(dense, pruned, np.random.default_rng(_STATISTICS_SEED), quantiles)
        loss = graded_loss(dense, pruned)
        if not complete:
            word = f"given up after {count} examples"
        elif pruned.collapsed:
            word = "collapsed"
        else:
            within = acceptance.decisive(loss, bound) <= acceptance.tolerance
            word = "feasible" if within else "loses too much"
        # The first part's own score is the cheap metric's, and is compared with what the judge says of others.
        accuracy = (1.0 - loss) * self.dense.score if judged and not complete else pruned.score
        return Verdict(accuracy, loss, bound, word == "feasible", pruned.collapsed, word)

    @cached_property
    def dense(self) -> Grades:
        """What the dense model's answers are worth."""
        return self.exam.grade(self.dense_answers)

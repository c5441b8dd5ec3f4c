"""Verdicts on candidates where a judge grades: what it was spared is on its scale, and its silence is named."""

from types import SimpleNamespace

import pytest

from sieve_edge.protocols import Asked
from sieve_edge.search.acceptance import Acceptance, Reference
from sieve_edge.search.fitness import fitness
from sieve_edge.search.result import why_dense
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.written import WrittenExam, grade_written
from sieve_edge.task_config import Task

COUNT = 40
RULE = Acceptance(0.05, "point", 0.8, 0.95)
SOURCE = {"path": "file:a.csv"}
TASK = Task(
    name="toy",
    description="d",
    source=SOURCE,
    transfer=SOURCE,
    prompt="{{ text }}",
    splits={"calibration": 10, "selection": COUNT, "test": 20, "transfer": 20},
    metric="judge",
    max_new_tokens=4,
)


class FakeJudge:
    """Finds what begins as it should correct in so many of ten cases, and says nothing about some."""

    def __init__(self, correct=10, silent=0):
        self.correct, self.silent, self.asked = correct, silent, 0

    def grade(self, asked):
        self.asked += len(asked)
        worth = []
        for one in asked:
            number = int(one.question) % 10
            right = one.answer.startswith(one.references[0]) and number < self.correct
            worth.append(float("nan") if number < self.silent else float(right))
        return worth


def make(judge, dense, task=TASK, metric="token_f1"):
    references = [(f"word{number}",) for number in range(COUNT)]
    questions = [str(number) for number in range(COUNT)]
    exam = WrittenExam([[0]] * COUNT, references, questions, task, metric, None, (), judge)
    return Reference(exam, dense)


def right(count=COUNT):
    return [f"word{number}" for number in range(count)]


def test_a_plan_that_was_given_up_is_punished_on_the_judge_s_scale():
    # A strict judge: dense scores 0.4 by it, 1.0 by the screen; the plan loses half by the screen.
    judge = FakeJudge(correct=4)
    reference = make(judge, right())
    assert reference.dense.score == pytest.approx(0.4)
    given_up = [word if number % 2 else "nothing" for number, word in enumerate(right(20))]
    verdict = reference.judge(given_up, RULE)
    assert (verdict.word, verdict.loss) == ("given up after 20 examples", pytest.approx(0.5))
    assert verdict.accuracy == pytest.approx(0.2), "half of what the dense model has, not the screen's 0.5"
    needed = 0.95 * reference.dense.score
    assert fitness(0.5, verdict.accuracy, needed, 50.0) < 1e-3 * fitness(0.9, needed, needed, 50.0)
    assert judge.asked == COUNT, "about the dense model only"


def test_without_a_judge_a_plan_that_was_given_up_scores_what_its_first_part_does():
    reference = make(None, [*right(20), *["nothing"] * 20])
    verdict = reference.judge([word if number % 2 else "nothing" for number, word in enumerate(right(20))], RULE)
    assert verdict.accuracy == 0.5


def test_one_answer_to_everything_is_no_plan_and_is_not_shown_to_the_judge():
    judge = FakeJudge()
    verdict = make(judge, right()).judge(["word1"] * COUNT, RULE)
    assert (verdict.word, verdict.collapsed, verdict.feasible, verdict.accuracy) == ("collapsed", True, False, 0.0)
    assert judge.asked == 0


def test_answers_that_are_all_alike_are_graded_by_the_judge_outside_the_search():
    asked = [Asked(str(number), "yes, it is", ("yes",)) for number in range(3)]
    grades = grade_written(TASK, "exact_match", FakeJudge(), asked)
    assert (grades.score, grades.collapsed) == (1.0, True)
    assert grade_written(TASK, "exact_match", None, asked).score == 0.0


def test_a_judge_that_says_too_little_is_named():
    reference = make(FakeJudge(silent=2), right())
    verdict = reference.judge(right(), RULE)
    assert (verdict.word, verdict.silent) == ("too few verdicts", True)
    scored = {"a": SimpleNamespace(verdict=verdict), "b": SimpleNamespace(verdict=SimpleNamespace(silent=False))}
    found = SimpleNamespace(scored=scored)
    assert why_dense(found).startswith(
        "no plan met the tolerance, on 1 of 2 the judge gave too few verdicts; at most 10%"
    )
    del scored["a"]
    assert why_dense(found) == "no plan met the tolerance"


def test_what_the_baseline_was_graded_by_is_told():
    examples = [SimpleNamespace(references=("yes",))] * COUNT
    exam = make(FakeJudge(), []).exam
    told, _ = Examiner(TASK, FakeJudge()).baseline(exam, examples)
    assert told == "always 'yes' by token_f1"

"""Where two models answer differently, for labels and for texts."""

import numpy as np

from sieve_edge.task.differences import SHOWN, find_differences
from sieve_edge.task.evaluate import Grades, grade_labels
from sieve_edge.task.examples import Example
from sieve_edge.task_config import Task

SOURCE = {"path": "file:data.csv"}
SPLITS = dict.fromkeys(("calibration", "selection", "test", "transfer"), 20)


def make_task(**fields):
    shared = {"name": "mood", "description": "Mood.", "source": SOURCE, "transfer": SOURCE, "prompt": "{{ text }}"}
    return Task.model_validate(shared | {"splits": SPLITS} | fields)


def test_labels_are_compared_after_the_prior():
    task = make_task(labels={"0": " bad", "1": " good"})
    labels = np.array([0, 1, 0])
    answers = {
        "dense": [[-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.2]],
        "pruned": [[-1.0, -2.0], [-1.0, -1.5], [-1.0, -1.4]],
    }
    priors = {"dense": [0.0, 0.0], "pruned": [0.0, 0.45]}
    grades = {name: grade_labels(np.array(answers[name]), labels, np.array(priors[name])) for name in answers}
    examples = [Example(f"text {row}", f"prompt {row}", int(label)) for row, label in enumerate(labels)]
    found = find_differences(task, examples, answers, grades, priors)
    assert {name: found[name] for name in ("of", "differing", "better", "worse")} == {
        "of": 3,
        "differing": 2,
        "better": 0,
        "worse": 2,
    }
    assert found["examples"][0] == {
        "question": "prompt 1",
        "text": "text 1",
        "right": ["good"],
        "dense": {"said": "good", "worth": 1.0},
        "pruned": {"said": "bad", "worth": 0.0},
    }


def test_texts_show_the_largest_changes_first_and_few_of_them():
    task = make_task(metric="token_f1", max_new_tokens=4)
    count = SHOWN + 3
    worth = np.zeros(count)
    worth[5], worth[7] = 0.5, 1.0
    worth[9] = np.nan
    answers = {"dense": ["a"] * count, "pruned": ["b"] * (count - 1) + ["a"]}
    groups = np.zeros(count, np.int64)
    grades = {"dense": Grades(np.zeros(count), groups, False), "pruned": Grades(worth, groups, False)}
    examples = [Example(str(row), str(row), 0, references=("x", "y")) for row in range(count)]
    found = find_differences(task, examples, answers, grades, {"dense": [], "pruned": []})
    assert (found["differing"], found["better"], found["worse"]) == (count - 1, 2, 0)
    assert [item["text"] for item in found["examples"]] == ["7", "5", "0", "1", "2", "3", "4", "6", "8", "9"]
    assert found["examples"][-1]["pruned"] == {"said": "b", "worth": None}
    assert found["examples"][0]["right"] == ["x", "y"]

"""Metrics of written answers, by hand and against the libraries' own."""

import pytest

from sieve_edge.task.metrics import contains, credit, exact_match, json_field, matches, normalise, token_f1
from sieve_edge.task_config import Task

SOURCE = {"path": "file:none.csv"}
SPLITS = {"calibration": 20, "selection": 20, "test": 20, "transfer": 20}


def make_task(metric, **changes):
    return Task(
        name="toy",
        description="d",
        source=SOURCE,
        transfer=SOURCE,
        prompt="{{ text }}",
        splits=SPLITS,
        metric=metric,
        max_new_tokens=8,
        **changes,
    )


def test_normalised_answers_compare_as_squad_does():
    assert normalise("  The Eiffel-Tower, (Paris)! ") == "eiffeltower paris"
    assert exact_match("the Paris.", "paris") == 1
    assert exact_match("Parish", "Paris") == 0
    assert exact_match("a theatre", "theatre") == 1, "an article is a whole word"


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "cat sat", 1.0),
        ("cat", "cat sat down", 0.5),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),
        ("A", "A", 1.0),
        ("", "A", 0.0),
    ],
)
def test_token_f1(answer, reference, expected):
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_contains_takes_whole_words_only():
    assert contains("It was in New York City.", "new york") == 1
    assert contains("newyorkers", "new york") == 0
    assert contains("anything", "the") == 0
    assert contains("the answer is A", "A") == 0, "an article in a sentence is not the option"


def test_patterns_and_json():
    assert matches(r"answer is (\w+)", "I think the answer is Paris, maybe", "paris") == 1
    assert matches(r"answer is (\w+)", "Paris", "paris") == 0
    assert json_field("city", 'Sure: {"city": "Paris", "n": 2} done', "paris") == 1
    assert json_field("n", '{"city": "Paris", "n": 2}', "2") == 1
    assert json_field("city", '{broken {"city": "Rome"}', "rome") == 1
    assert json_field("city", "no object", "rome") == 0
    assert json_field("n", '{"n": 1.5}', "15") == 0
    assert matches("is (-?[0-9]+)", "it is -3", "3") == 0


def test_rouge_l_is_the_librarys():
    assert credit(
        make_task("rouge_l"), "rouge_l", "police killed the gunman", ["police kill the gunman"]
    ) == pytest.approx(0.75)
    assert credit(make_task("rouge_l"), "rouge_l", "Москва и Рим", ["москва, рим"]) == pytest.approx(0.8)


def test_the_best_reference_counts():
    assert credit(make_task("exact_match"), "exact_match", "Rome", ["Paris", "rome"]) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metric": "regex"}, "pattern: goes with metric regex, and is needed there"),
        ({"metric": "exact_match", "pattern": "(a)"}, "pattern: goes with metric regex"),
        ({"metric": "regex", "pattern": "a"}, "has no group"),
        ({"metric": "regex", "pattern": "("}, "is no regular expression"),
        ({"metric": "json_field"}, "field: goes with metric json_field"),
        ({"metric": "exact_match", "labels": {"a": " a", "b": " b"}}, "leave labels out"),
        ({"metric": "exact_match", "judge": {}}, "judge: goes with metric judge"),
        ({"metric": "judge", "judge": {"max_usd": 1.0}}, "max_usd: needs usd_per_million_prompt_tokens"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused(changes, problem):
    with pytest.raises(ValueError, match=problem.replace("(", r"\(").replace(")", r"\)")):
        make_task(**changes)


def test_the_length_of_written_answers_must_be_given():
    with pytest.raises(ValueError, match="max_new_tokens: metric token_f1 needs it"):
        Task(
            name="toy",
            description="d",
            source=SOURCE,
            transfer=SOURCE,
            prompt="{{ text }}",
            splits=SPLITS,
            metric="token_f1",
        )

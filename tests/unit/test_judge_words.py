"""What a judge's replies mean: a verdict is one of two words and nothing else, and waits grow."""

import datetime

import pytest

from sieve_edge.task.judge_words import CUT_OFF, parse_verdict, pause_s


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("correct", 1),
        (" Incorrect.\n", 0),
        ('"correct"', 1),
        ("**incorrect**", 0),
        ("not correct", None),
        ("", None),
        ("<think>It says the same, so it is not incorrect.</think>\n\nCorrect.", 1),
        ("same\n</think>incorrect", 0),
        ("<think>the candidate is\ncorrect", None),
        ("<think>same</think>It is not correct", None),
        (f"correct{CUT_OFF}", None),
    ],
)
def test_only_the_two_words_are_verdicts(words, verdict):
    assert parse_verdict(words) == verdict


def test_waits_grow_and_what_the_endpoint_asks_for_goes_first():
    now = datetime.datetime(2025, 1, 1, 12, tzinfo=datetime.UTC)
    assert [pause_s({}, number, 0.0, now) for number in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_s({}, 2, 0.25, now) == 2.5
    assert pause_s({"retry-after-ms": "20"}, 5, 0.25, now) == pytest.approx(0.02)
    assert pause_s({"retry-after": "7"}, 0, 0.25, now) == 7
    assert pause_s({"retry-after": "Wed, 01 Jan 2025 12:00:09 GMT"}, 0, 0.0, now) == 9
    assert pause_s({"retry-after": "Wed, 01 Jan 2025 11:00:00 GMT"}, 0, 0.0, now) == 0
    assert pause_s({"retry-after": "900"}, 0, 0.0, now) == 60
    assert pause_s({"retry-after": "soon"}, 1, 0.0, now) == 1

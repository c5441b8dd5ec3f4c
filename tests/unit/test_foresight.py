"""What a judge will be shown: told before anything is asked, and refused above the ceiling of calls."""

from types import SimpleNamespace

import pytest

from sieve_edge.errors import EnvironmentMissing, JudgeError
from sieve_edge.foresight import foreseen_answers, tell_judging
from sieve_edge.recipe import Recipe
from sieve_edge.task.judge import OpenAIJudge
from sieve_edge.task_config import JudgeSettings

VERBS = ("calibrate", "learn", "search", "fuse", "tune", "vocabulary", "quantize", "export", "validate")
SIZES = {"calibration": 50, "selection": 100, "test": 200, "transfer": 60}


def make_run(max_calls=20_000, calls=0, **recipe):
    said = []
    judge = SimpleNamespace(settings=JudgeSettings(max_calls=max_calls), calls=calls, check=lambda: None)
    splits = {name: range(size) for name, size in SIZES.items()}
    progress = SimpleNamespace(warn=said.append)
    return SimpleNamespace(judge=judge, splits=splits, recipe=Recipe(**recipe), progress=progress, said=said)


def test_every_stage_that_shows_answers_is_in_the_figure():
    found = {"calibrate": 100, "search": 800, "fuse": 100, "validate": 520}
    assert foreseen_answers(make_run(), VERBS) == found
    more = make_run(tune={"method": "full_factors"}, vocabulary={"keep": "auto"})
    assert foreseen_answers(more, VERBS) == {**found, "tune": 3 * 360, "vocabulary": 100 + 2 * 260}
    alone = make_run(tune={"method": "full_factors", "compare_dense": False})
    assert foreseen_answers(alone, VERBS)["tune"] == 2 * 360
    assert foreseen_answers(more, VERBS[-2:]) == {"validate": 520}


def test_the_figure_is_a_warning_so_that_quiet_shows_it_too():
    run = make_run(calls=7)
    tell_judging(run, VERBS)
    (line,) = run.said
    assert "foreseen to be shown 1520 answers (calibrate 100, search 800, fuse 100, validate 520)" in line
    assert line.endswith("no more than 20000 calls in all, 7 of them made before")
    tell_judging(run, ("learn", "export"))
    assert len(run.said) == 1, "nothing is to be judged"
    run.judge = None
    tell_judging(run, VERBS)
    assert len(run.said) == 1


def test_a_missing_key_is_told_before_anything_expensive(monkeypatch, tmp_path):
    monkeypatch.delenv("SIEVE_TEST_KEY", raising=False)
    run = make_run()
    run.judge = OpenAIJudge(JudgeSettings(api_key_env="SIEVE_TEST_KEY"), tmp_path / "v.sqlite", "build")
    with pytest.raises(EnvironmentMissing, match="SIEVE_TEST_KEY is not set"):
        tell_judging(run, VERBS)
    tell_judging(run, ("learn", "export"))


def test_more_than_the_build_may_ask_is_refused_at_once():
    run = make_run(search={"strategy": "genetic"})
    with pytest.raises(JudgeError) as caught:
        tell_judging(run, VERBS)
    assert str(caught.value) == (
        "judge gpt-4o: this build is foreseen to show it 110720 answers (calibrate 100, search 110000, fuse 100, "
        "validate 520), judge.max_calls is 20000; raise the task's judge.max_calls, or take fewer splits.selection "
        "examples or --set search.strategy=guided"
    )
    with pytest.raises(JudgeError) as caught:
        tell_judging(make_run(max_calls=1519), VERBS)
    assert str(caught.value).endswith("or take fewer splits.selection examples")

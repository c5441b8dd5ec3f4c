"""``sieve-edge tasks check``: what a user sees of a task before building it."""

import yaml

from tests.command import command, last_json


def test_a_task_is_shown_counted_and_asked(pico, toy_task):
    done = command("tasks", "check", toy_task, "--model", pico("llama"))
    assert done.returncode == 0, done.stderr
    facts = last_json(done)
    assert facts["splits"]["selection"]["examples"] == 100
    assert sum(facts["splits"]["test"]["labels"].values()) == 200
    assert set(facts["splits"]["test"]["labels"]) == {"good", "bad"}
    lengths = facts["splits"]["transfer"]["prompt_tokens"]
    assert 3 < lengths["least"] <= lengths["median"] <= lengths["most"]
    assert facts["splits"]["calibration"]["prompt_tokens"]["median"] < lengths["median"], "transfer texts are longer"
    assert facts["shared_texts"] == 0
    assert 0.5 < facts["score_of_ten"] <= 1
    assert done.stderr.count("the dense model says '") == 10
    assert facts["splits"]["test"]["cut"] == 0
    assert done.stderr.count("---\nText: ") == 3


def test_the_list_still_works_and_a_bad_task_is_one_line(toy_task, tmp_path):
    assert "movie-sentiment" in last_json(command("tasks"))
    tree = yaml.safe_load(toy_task.read_text(encoding="utf-8")) | {"prompt": "no place for it"}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = command("tasks", "check", tmp_path / "bad.yaml")
    assert done.returncode == 3
    assert "prompt: contains no {{ text }}" in done.stderr

"""``sieve-edge tasks check``: what a user sees of a task before building it."""

from pathlib import Path

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
    assert 0.5 < facts["score_of_ten"] <= 1
    assert done.stderr.count("the dense model says '") == 10
    assert facts["splits"]["test"]["cut"] == 0
    assert done.stderr.count("---\nText: ") == 3


def test_rows_that_are_left_out_are_counted_and_told(pico, toy_task, tmp_path):
    tree = yaml.safe_load(toy_task.read_text(encoding="utf-8"))
    main, transfer = (Path(tree[name]["path"].removeprefix("file:")) for name in ("source", "transfer"))
    header, *rows = main.read_text(encoding="utf-8").splitlines()
    _, *others = transfer.read_text(encoding="utf-8").splitlines()
    unique = len({row.rpartition(",")[0] for row in rows})
    for name, lines in (("source", [*rows, *rows[:7]]), ("transfer", [*rows[:5], *others, others[0]])):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        tree[name]["path"] = f"file:{tmp_path / name}.csv"
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = command("tasks", "check", tmp_path / "task.yaml", "--model", pico("llama"))
    assert done.returncode == 0, done.stderr
    counts = {(item["from"], item["why"]): item["rows"] for item in last_json(done)["left_out"]}
    assert counts["source", "duplicate"] == len(rows) - unique + 7
    assert counts["transfer", "in another source"] >= 5
    assert counts["transfer", "duplicate"] >= 1
    assert f"transfer: {counts['transfer', 'in another source']} rows left out, another split or sou" in done.stderr


def test_lengths_are_shown_before_a_prompt_that_is_too_long_is_refused(pico, toy_task, tmp_path):
    tree = yaml.safe_load(toy_task.read_text(encoding="utf-8"))
    tree["prompt"] = "Text: " + "film " * 70 + "{{ text }} Sentiment:"
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = command("tasks", "check", tmp_path / "long.yaml", "--model", pico("llama"))
    assert done.returncode == 3
    assert "the model holds 64; set max_words" in done.stderr
    assert '"most": ' in done.stderr.split("error")[0]


def test_the_list_still_works_and_a_bad_task_is_one_line(toy_task, tmp_path):
    assert "movie-sentiment" in last_json(command("tasks"))
    tree = yaml.safe_load(toy_task.read_text(encoding="utf-8")) | {"prompt": "no place for it"}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = command("tasks", "check", tmp_path / "bad.yaml")
    assert done.returncode == 3
    assert "prompt: contains no {{ text }}" in done.stderr

"""Further calibration sources through the real command line."""

import yaml

from sieve_edge.artifacts import read_manifest
from tests.command import command, last_json
from tests.pico import sentences, write_csv

QUICK = ("--set", "calibration_tokens=600", "--set", "threads=1", "--set", "learn.fisher_prompts=16")


def test_the_manifest_says_how_many_prompts_came_from_each_source(pico, toy_task, toy_target, tmp_path):
    write_csv(tmp_path / "more.csv", sentences(120, seed=3, words=(9, 14)))
    task = yaml.safe_load(toy_task.read_text())
    task["calibration_sources"] = [{"path": f"file:{tmp_path / 'more.csv'}", "weight": 0.5}]
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(yaml.safe_dump(task))
    runs = {}
    for name, file in (("alone", toy_task), ("mixed", mixed)):
        options = ("--target", toy_target, "--task", file, "--model", pico("llama"), "--run-dir", tmp_path / name)
        done = command("calibrate", *options, *QUICK)
        assert done.returncode == 0, done.stderr
        runs[name] = read_manifest(tmp_path / name / "calibrate")
        assert last_json(done)["metrics"] == runs[name].metrics
    alone, both = runs["alone"].metrics, runs["mixed"].metrics
    assert [source["path"] for source in alone["sources"]] == [task["source"]["path"]]
    main, more = both["sources"]
    assert (main["path"], more["path"]) == (task["source"]["path"], f"file:{tmp_path / 'more.csv'}")
    # The split is two to one, and so is the part of it whose tokens were enough.
    assert abs(main["prompts"] - 2 * more["prompts"]) <= 2
    assert 0 < more["prompts"] < main["prompts"] < alone["sources"][0]["prompts"]
    assert both["dense_selection"] == alone["dense_selection"]
    assert runs["mixed"].key != runs["alone"].key

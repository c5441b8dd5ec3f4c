"""Progress: what each way of showing it prints, and what another process can read of a run that goes on."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from sieve_edge.cli import cli
from sieve_edge.errors import ArtifactError
from sieve_edge.progress import STATUS, Progress


def play(progress):
    progress.stage(3, 9, "search", "pruning plan", current=False)
    progress.say("  a line [with] :smile: brackets")
    progress.warn("  fallback: something")
    with progress.task("search", 2, "plans") as outer:
        for _ in range(3):
            with progress.task("score labels", 4, "candidates") as inner:
                inner(4)
            outer(1)
        progress.best("abc", 0.4, 0.8, 0.031)
    progress.stage_done("search", 12.3)
    progress.stage(4, 9, "fuse", "checkpoint", current=True)


def test_lines(capsys):
    play(Progress())
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == ["[3/9] search: pruning plan", "  a line [with] :smile: brackets", "  fallback: something"]
    assert [line.split(",")[0] for line in told if "score labels" in line] == ["  score labels: 4/4 candidates"] * 3
    # An estimate that is passed grows.
    assert [line.split(",")[0] for line in told if line.startswith("  search:")] == [
        "  search: 2/2 plans",
        "  search: 3/3 plans",
    ]
    assert told[-3:] == [
        "  best plan so far: abc keeps 0.400 of the linears, loss 3.10%",
        "  search took 12 s",
        "[4/9] fuse: up to date",
    ]


def test_quiet_shows_warnings_only(capsys):
    play(Progress("quiet"))
    assert capsys.readouterr().err == "  fallback: something\n"


def test_json_is_a_document_a_line(capsys):
    play(Progress("json"))
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events[0] == {
        "event": "stage",
        "stage": "search",
        "number": 3,
        "of": 9,
        "writes": "pruning plan",
        "state": "running",
    }
    assert events[1] == {"event": "message", "level": "info", "text": "a line [with] :smile: brackets"}
    assert events[2]["level"] == "warning"
    ends = [event for event in events if event.get("task") == "score labels" and event["done"] == 4]
    assert [(event["total"], event["unit"]) for event in ends] == [(4, "candidates")] * 3
    assert {"event": "best", "plan": "abc", "kept_linears": 0.4, "score": 0.8, "loss": 0.031} in events
    assert events[-1]["state"] == "up to date"


def test_bars_stay_while_tasks_are_nested(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    play(Progress())
    told = capsys.readouterr().err
    assert "score labels" in told
    assert "best plan keeps 0.400" in told


def train(progress):
    with progress.task("tune", 4, "steps") as advance:
        for loss in (0.5, 0.25, float("nan"), 0.125):
            progress.figures(loss=loss, selection=0.75)
            advance(1)


def test_a_running_loss_is_shown_in_every_form(monkeypatch, capsys):
    train(Progress("json"))
    [*_, last] = events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "figures" not in events[0], "nothing was said yet"
    assert last["figures"] == {"loss": 0.125, "selection": 0.75}
    assert last["left_seconds"] == 0.0
    train(Progress())
    assert capsys.readouterr().err.splitlines()[-1].endswith(" left, loss 0.1250, selection 0.7500")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bars = Progress()
    with bars.task("tune", 2, "steps") as advance:
        bars.figures(loss=0.5)
        advance(1)
        # Bars are drawn again at once when one is added.
        with bars.task("score", 1, "prompts"):
            pass
    assert "tune, loss 0.5000" in capsys.readouterr().err


def test_a_figure_that_is_no_number_is_still_json(tmp_path):
    progress = Progress("quiet")
    with progress.kept_in(tmp_path), progress.task("tune", 2, "steps") as advance:
        progress.figures(loss=float("nan"))
        advance(1)
        progress.stage(5, 9, "tune", "tuned checkpoint", current=False)
        facts, told = status(tmp_path)
    assert facts["tasks"][0]["figures"] == {"loss": None}
    assert "loss nan" in told


def status(root: Path):
    done = CliRunner().invoke(cli, ["status", str(root)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_another_process_sees_how_far_a_run_is(tmp_path):
    progress = Progress("quiet")
    with progress.kept_in(tmp_path / "run"):
        progress.best("abc", 0.4, 0.8, 0.031)
        with progress.task("search", 7, "plans") as advance:
            advance(3)
            progress.stage(3, 9, "search", "pruning plan", current=False)
            facts, told = status(tmp_path / "run")
    assert facts["state"] == "running"
    assert facts["process"] == os.getpid()
    assert (facts["number"], facts["of"], facts["stage"]) == (3, 9, "search")
    assert [(task["done"], task["total"], task["unit"]) for task in facts["tasks"]] == [(3, 7, "plans")]
    assert facts["best"]["kept_linears"] == 0.4
    assert "stage 3 of 9: search" in told
    assert "search: 3/7 plans" in told
    assert "abc keeps 0.400 of the linears, loss 3.10%" in told
    facts, told = status(tmp_path / "run")
    assert facts["state"] == "finished"
    assert "no result yet" in told


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt(), "interrupted"), (ArtifactError("disk: full"), "failed")]
)
def test_a_run_that_ended_early_says_why(tmp_path, error, state):
    def build(progress):
        with progress.kept_in(tmp_path):
            progress.stage(2, 9, "learn", "bank", current=False)
            raise error

    with pytest.raises(type(error)):
        build(Progress("quiet"))
    facts, told = status(tmp_path)
    assert facts["state"] == state
    assert "goes on from there" in told
    assert ("disk: full" in told) == (state == "failed")


def test_a_killed_run_is_told_from_one_that_goes_on(tmp_path):
    with Progress("quiet").kept_in(tmp_path):
        facts = json.loads((tmp_path / STATUS).read_text())
    for change in ({"process": 2**22 + 1}, {"process_created": 0.0}):
        (tmp_path / STATUS).write_text(json.dumps({**facts, "state": "running", **change}))
        assert status(tmp_path)[0]["state"] == "killed"
    (tmp_path / STATUS).write_text(json.dumps({**facts, "state": "running", "host": "elsewhere", "process": 1}))
    assert status(tmp_path)[0]["state"] == "running"


def test_status_needs_a_build(tmp_path):
    done = CliRunner().invoke(cli, ["status", str(tmp_path)])
    assert done.exit_code == 3
    assert "no build has begun here" in done.stderr


def test_quiet_and_json_exclude_each_other_and_errors_take_the_form():
    words = ["build", "--target", "no-such-target"]
    assert CliRunner().invoke(cli, [*words, "--quiet", "--json-progress"]).exit_code == 2
    done = CliRunner().invoke(cli, [*words, "--json-progress"])
    assert done.exit_code == 3
    assert json.loads(done.stderr)["event"] == "error"
    assert CliRunner().invoke(cli, [*words, "--quiet"]).stderr.startswith("error: ")

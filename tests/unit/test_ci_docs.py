"""The CI files under docs/ are YAML, and what they run is there."""

import re
from pathlib import Path

import pytest
import yaml

from sieve_edge.resolve import shipped_targets

CHECKOUT = Path(__file__).parents[2]
FILES = sorted((CHECKOUT / "docs/ci").glob("*.yml"))


def test_there_are_files() -> None:
    assert [file.stem for file in FILES] == ["github-actions", "gitlab-ci"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_it_runs_is_there(file: Path) -> None:
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    job = tree["jobs"]["build"] if "jobs" in tree else tree["build-model"]
    commands = [step["run"] for step in job["steps"] if "run" in step] if "steps" in job else job["script"]
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        word, verb = command.split()[:2]
        assert (word, verb) == ("make", "build")
        assert 'TARGET="$TARGET"' in command
    assert "\nbuild:" in makefile
    assert commands
    assert set(re.findall(r"x86-[a-z]+", file.read_text(encoding="utf-8"))) <= set(shipped_targets())


def test_every_stage_of_the_gate_is_kept() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert "runs/*/export/pruned" in text
        assert "runs/*/result.json" in text
        assert "runs/*/report.html" in text


def test_a_target_may_be_a_file_of_the_repository() -> None:
    github, gitlab = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES)
    # A push has no inputs.
    assert github["jobs"]["build"]["env"]["TARGET"] == "${{ inputs.target || vars.TARGET || 'x86-cpu' }}"
    # GitLab takes no slash in a key.
    assert "TARGET" not in gitlab["build-model"]["cache"]["key"]

"""What docker/prove.sh takes for agreement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "agree.py"


def agree(*arguments):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.count("\n") == done.returncode, done.stderr
    return done.stderr.partition(": ")[2]


def output(folder, missed, unknown=()):
    names = ("loss_test", "faster", "file_size_mib")
    checks = [{"name": name, "passed": None if name in unknown else name not in missed} for name in names]
    (folder / "out").write_text("said before\n" + json.dumps({"checks": checks}) + "\n")
    return folder / "out"


def test_only_speed_may_be_missed(tmp_path):
    assert not agree("limits", 0, output(tmp_path, ()))
    assert not agree("limits", 0, output(tmp_path, (), unknown=("faster",)))
    assert not agree("limits", 4, output(tmp_path, ("faster",)))
    assert "missed loss_test, faster, only faster may" in agree("limits", 4, output(tmp_path, ("faster", "loss_test")))
    assert "missed file_size_mib, only" in agree("limits", 4, output(tmp_path, ("file_size_mib",)))
    assert "exit 4, but missed nothing" in agree("limits", 4, output(tmp_path, ()))
    assert "exit 5, must be 0 or 4" in agree("limits", 5, tmp_path / "nowhere")


@pytest.mark.parametrize(("there", "problem"), [(0.905, ""), (0.88, "test accuracies 0.9000 and 0.8800, must differ")])
def test_accuracies_have_to_agree(tmp_path, there, problem):
    for name, score in (("here", 0.9), ("there", there)):
        (tmp_path / name / "validate").mkdir(parents=True)
        tree = {"accuracy": {"pruned": {"test": {"corrected": score}}}}
        (tmp_path / name / "validate" / "report.json").write_text(json.dumps(tree))
    said = agree("scores", tmp_path / "here", tmp_path / "there")
    assert problem in said
    assert bool(said) == bool(problem)


@pytest.mark.parametrize(("difference", "fine"), [(4e-6, True), (0.01, False), (float("nan"), False)])
def test_logits_have_to_agree(tmp_path, difference, fine):
    (tmp_path / "told.json").write_text(json.dumps({"max_difference": difference}))
    assert bool(agree("logits", tmp_path / "told.json")) != fine

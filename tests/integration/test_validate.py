import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sieve_edge.device import place
from sieve_edge.device.checks import make_checks
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.place import ThisMachine
from sieve_edge.device.process import run_worker
from sieve_edge.device.workload import workload_prompt
from sieve_edge.errors import ArtifactError
from sieve_edge.files import read_json
from sieve_edge.progress import Progress
from sieve_edge.report.markdown import write_report
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.likelihood import label_log_likelihoods
from sieve_edge.validate import validate
from tests.tiny_onnx import WORDS, make_examples, make_target, make_task, write_folder

ANSWERS = [[WORDS.index("negative")], [WORDS.index("positive")]]
EXAMPLES = {"test": make_examples(60, 1), "transfer": make_examples(40, 2)}
BIAS = 80.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    dense = write_folder(root / "dense", work=40)
    pruned = write_folder(root / "pruned", noise=0.6, bias=BIAS, prior=(BIAS, 0.0))
    return {"dense": dense, "pruned": pruned}


@pytest.fixture(scope="module")
def model(folders):
    return OrtTextModel(folders["dense"], 1)


def run_validate(folders, out, target=None):
    out.mkdir(exist_ok=True)
    return validate(
        folders["pruned"],
        folders["dense"],
        EXAMPLES,
        Examiner(make_task()),
        target or make_target(),
        ThisMachine(target or make_target()),
        tolerance=0.05,
        seed=0,
        source_mib=123.0,
        out=out,
        progress=Progress(),
    )


def test_validate_reports_every_figure(folders, tmp_path):
    target = make_target(time_per_answer_ms=1000.0, peak_memory_mib=1.0, file_size_mib=5.0)
    result = run_validate(folders, tmp_path / "out", target)
    assert read_json(tmp_path / "out" / "report.json") == json.loads(json.dumps(result))
    accuracy, loss, speed = result["accuracy"], result["loss"], result["timing"]
    assert accuracy["baseline"] == {"is": "always one label", "score": 0.5}
    assert accuracy["dense"]["test"]["raw"] == accuracy["dense"]["test"]["corrected"] > 0.8
    # The pruned model says "positive" to everything until the prior that it ships is added.
    assert accuracy["pruned"]["test"]["raw"] == 0.5
    assert accuracy["pruned"]["transfer"]["corrected"] > 0.7
    for split in ("test", "transfer"):
        ratio = accuracy["pruned"][split]["corrected"] / accuracy["dense"][split]["corrected"]
        assert loss[split] == pytest.approx(1 - ratio)
    assert loss["interval95"][0] <= loss["test"] <= loss["interval95"][1]
    assert loss["selection"] == pytest.approx(1 - 0.88 / 0.9)
    assert speed["pruned"]["speed_ratio"] > 1.5
    assert result["size_mib"]["pruned"] == (folders["pruned"] / "model.onnx").stat().st_size / 2**20
    assert result["size_mib"]["source"] == 123.0
    assert result["max_logit_difference"] <= 5e-3
    checks = {check["name"]: check for check in result["checks"]}
    assert checks["faster"]["passed"]
    assert checks["file_size_mib"]["passed"]
    assert checks["peak_memory_mib"] == {
        "name": "peak_memory_mib",
        "measured": result["peak_memory_mib"]["pruned"],
        "limit": 1.0,
        "unit": "MiB",
        "passed": False,
    }
    assert not result["passed"]
    page = write_report({**result, "seconds": {"fuse": 2.0}, "command": "sieve-edge build"}, tmp_path).read_text()
    for line in ("# mood on tiny", "**no**", "| dense, transfer |", "| fuse | 2.0 |", "`sieve-edge build`"):
        assert line in page


def test_accuracies_are_those_of_the_graph(folders, model, tmp_path):
    result = run_validate(folders, tmp_path / "out")
    words = [["Review", ":", *item.text.split(), "Mood", ":"] for item in EXAMPLES["test"]]
    scores = label_log_likelihoods(model, [[WORDS.index(word) for word in row] for row in words], ANSWERS, 64)
    labels = np.asarray([item.label for item in EXAMPLES["test"]])
    recalls = [(scores.argmax(1)[labels == label] == label).mean() for label in (0, 1)]
    assert result["accuracy"]["dense"]["test"]["raw"] == np.mean(recalls)


def test_a_killed_validation_goes_on_where_it_was(folders, tmp_path, monkeypatch):
    jobs = []

    def dies_at_fifth(job, progress=None):
        jobs.append(job["job"])
        if len(jobs) == 5:
            raise KeyboardInterrupt
        return run_worker(job, progress)

    monkeypatch.setattr(place, "run_worker", dies_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        run_validate(folders, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    run_validate(folders, tmp_path / "out")
    assert jobs == ["reference"] + ["score"] * 5 + ["time", "memory", "memory"]
    run_validate(folders, tmp_path / "out")
    assert len(jobs) == 9
    slower = make_target().model_copy(update={"threads": 2})
    run_validate(folders, tmp_path / "out", slower)
    assert len(jobs) == 17


def test_what_another_runtime_measured_is_not_kept(folders, tmp_path, monkeypatch):
    jobs = []

    def counted(job, progress=None):
        jobs.append(job["job"])
        return run_worker(job, progress)

    monkeypatch.setattr(place, "run_worker", counted)
    run_validate(folders, tmp_path / "out")
    before = len(jobs)
    known = place.facts

    def patched(packages):
        found = known(packages)
        return {**found, "packages": {**found["packages"], "onnxruntime": "0.0+patched"}}

    monkeypatch.setattr(place, "facts", patched)
    run_validate(folders, tmp_path / "out")
    assert len(jobs) == 2 * before


def test_checks_follow_the_limits():
    timing = {"time_per_answer_ms": 10.0, "time_to_first_token_ms": 9.0, "time_per_token_p95_ms": 3.0}
    result = {
        "timing": {"dense": timing, "pruned": timing},
        "peak_memory_mib": {"pruned": 50.0},
        "size_mib": {"pruned": 5.0},
        "loss": {"test": 0.05},
        "max_logit_difference": 6e-3,
        "drift": {"kl": 0.0, "top1": 1.0, "kl_limit": None},
        "validated_on": "device",
    }
    checks = make_checks(result, make_target(time_per_token_p95_ms=3.0, time_to_first_token_ms=8.9), 0.05)
    passed = {check["name"]: check["passed"] for check in checks}
    # As fast as dense is not faster; at the limit is within it.
    assert passed == {
        "loss_test": True,
        "max_logit_difference": False,
        "faster": False,
        "time_to_first_token_ms": False,
        "time_per_token_p95_ms": True,
    }


def test_without_the_device_time_and_memory_are_not_verified(folders, tmp_path):
    target = make_target(time_per_answer_ms=1000.0, peak_memory_mib=1.0, file_size_mib=5.0)
    target = target.model_copy(update={"connection": None})
    result = run_validate(folders, tmp_path / "out", target)
    assert result["validated_on"] == "host"
    outcomes = {check["name"]: check["passed"] for check in result["checks"]}
    unknown = {name for name, passed in outcomes.items() if passed is None}
    assert unknown == {"faster", "time_per_answer_ms", "peak_memory_mib"}
    assert outcomes["file_size_mib"] is True
    page = write_report(result, tmp_path).read_text()
    assert "Not verified, since the device was not at hand: faster, time_per_answer_ms, peak_memory_mib." in page


def test_workload_prompt_has_the_wanted_length():
    prompts = [[1] * 4, [2, 3] * 4, [5] * 20]
    assert workload_prompt(prompts, None) == [2, 3] * 4
    assert workload_prompt(prompts, 7) == [2, 3, 2, 3, 2, 3, 2]
    assert workload_prompt(prompts, 22) == [5] * 22


def test_an_artifact_of_another_task_is_refused(folders, tmp_path):
    task = make_task().model_copy(update={"labels": {"neg": " bad", "pos": " good"}})
    with pytest.raises(ArtifactError, match=r"sieve_edge.json: made for metric .*task mood has"):
        validate(
            folders["pruned"],
            folders["dense"],
            EXAMPLES,
            Examiner(task),
            make_target(),
            ThisMachine(make_target()),
            0.05,
            0,
            1.0,
            tmp_path,
            Progress(),
        )


def test_validate_runs_where_torch_is_not_installed(folders, tmp_path):
    # Every Python below runs this first: the parent and its workers.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import sys
            class NoTorch:
                def find_spec(self, name, path=None, target=None):
                    if name.split(".")[0] in ("torch", "transformers", "onnx", "safetensors"):
                        raise ImportError(f"{name} is not on this board")
            sys.meta_path.insert(0, NoTorch())
        """)
    )
    script = """
        import sys
        from pathlib import Path
        from sieve_edge.progress import Progress
        from sieve_edge.report.markdown import write_report
        from sieve_edge.config import Target
        from sieve_edge.device.place import ThisMachine
        from sieve_edge.task_config import Task
        from sieve_edge.task.examiner import Examiner
        from sieve_edge.task.examples import Example
        from sieve_edge.validate import validate
        pruned, dense, task, target, out = sys.argv[1:]
        task, target, out = Task.model_validate_json(task), Target.model_validate_json(target), Path(out)
        rows = [Example("x", f"Review: {word} Mood:", label) for word, label in (("fine", 1), ("dull", 0))] * 2
        splits = {"test": rows, "transfer": rows}
        place = ThisMachine(target)
        result = validate(
            Path(pruned), Path(dense), splits, Examiner(task), target, place, 0.5, 0, 1.0, out, Progress()
        )
        write_report(result, out)
        assert not {"torch", "transformers"} & set(sys.modules)
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folders["pruned"]), str(folders["dense"])]
    command += [make_task().model_dump_json(), make_target().model_dump_json(), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "done\n", done.stderr

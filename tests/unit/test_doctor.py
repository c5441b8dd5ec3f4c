"""``sieve-edge doctor``: facts on stdout as one JSON line, tables on stderr, nothing heavy imported."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

from sieve_edge.cli.doctor import doctor
from sieve_edge.resolve import load_task, shipped_targets
from sieve_edge.task_config import CalibrationSource


def _facts() -> dict:
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def test_prints_what_there_is() -> None:
    facts = _facts()
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["machine"]["memory_mib"] > facts["machine"]["memory_available_mib"] > 0
    assert facts["extras"]["torch"]["torch"] == metadata.version("torch")
    assert set(facts["targets"]) == set(shipped_targets())


def test_names_what_is_missing_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(package: str) -> str:
        if package in ("onnxruntime", "scipy"):
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    result = CliRunner().invoke(doctor)
    missing = json.loads(result.stdout)["targets"]["x86-cpu"]
    assert missing["scipy (extra torch)"] == "scripts/setup.sh torch, or pip install sieve-edge[torch]"
    assert "scripts/setup.sh onnx, " in missing["onnxruntime (extra onnx)"]
    assert "sieve-edge[onnx]" in result.stderr


def test_a_gpu_tool_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    assert _facts()["machine"]["gpus"][0].startswith("unusable: ")


def test_looks_for_the_data_of_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("movie-sentiment")
    further = CalibrationSource(path="package:no_such_package/more.csv")
    changed = task.model_copy(update={"calibration_sources": (further,)})
    monkeypatch.setattr(sys.modules["sieve_edge.cli.doctor"], "load_task", lambda _: changed)
    assert _facts()["targets"]["x86-cpu"]["package:no_such_package/more.csv"] == "make demo"


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom sieve_edge.cli.doctor import inspect_machine\ninspect_machine()\n"
        "sys.exit(str({'torch', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"

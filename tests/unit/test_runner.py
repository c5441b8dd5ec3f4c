"""What a device lacks, and what is collected for it."""

import os
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve_edge.device import runner
from sieve_edge.device.runner import make_site, missing, requirements

ENOUGH = {"numpy": "99", "pydantic": "99", "tokenizers": "99", "onnxruntime": "99", "llama-cpp-python": "0.3.36"}


@pytest.fixture
def asked(monkeypatch):
    """What pip is asked for, in place of running it."""
    found, pins = [], []

    def run(command, **_):
        found.append(command)
        part = command[command.index("--target") + 1]
        pins.extend(Path(command[command.index("--constraint") + 1]).read_text().splitlines())
        os.makedirs(part)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runner.subprocess, "run", run)
    return SimpleNamespace(commands=found, pins=pins)


def test_stock_llama_cpp_does_not_run_factored_files():
    assert missing("llama.cpp", ENOUGH) == ["llama-cpp-python==0.3.36+factored (has 0.3.36)"]
    assert not missing("llama.cpp", ENOUGH | {"llama-cpp-python": "0.3.36+factored.1"})
    assert not missing("llama.cpp-stock", ENOUGH)
    assert not missing("llama.cpp-stock", ENOUGH | {"llama-cpp-python": "0.3.36+factored.1"})
    assert missing("llama.cpp", ENOUGH | {"llama-cpp-python": "0.3.1+factored.1"})


def test_either_build_of_onnxruntime_will_do():
    versions = {name: version for name, version in ENOUGH.items() if name != "onnxruntime"}
    assert not missing("onnxruntime", versions | {"onnxruntime-gpu": "99"})
    assert missing("onnxruntime", versions) == [f"{requirements('onnxruntime')[1]} (has none)"]


def test_a_runtime_that_uses_an_accelerator_is_not_shadowed(asked, tmp_path):
    sites = [make_site("onnxruntime", "aarch64", (3, 11), tmp_path, (), accelerated) for accelerated in (False, True)]
    assert sites[0] != sites[1]
    for command, there in zip(asked.commands, (True, False), strict=True):
        assert any(word.startswith("numpy") for word in command)
        assert any(word.startswith("onnxruntime") for word in command) == there


def test_what_packages_need_in_turn_has_the_versions_that_are_here(asked, tmp_path):
    make_site("onnxruntime", "aarch64", (3, 11), tmp_path)
    pins = dict(pin.split("==") for pin in asked.pins)
    assert {"numpy", "onnxruntime", "pydantic-core", "huggingface-hub", "protobuf", "flatbuffers"} <= set(pins)
    assert pins == {name: metadata.version(name).split("+")[0] for name in pins}
    assert "torch" not in pins

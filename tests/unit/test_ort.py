"""What ONNX Runtime is asked for on accelerators, seen by a stand-in for it: no accelerator is here."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sieve_edge.device.ort import GRAPH, OrtGraph, OrtTextModel
from sieve_edge.device.process import runtime_fields
from sieve_edge.resolve import load_target
from tests.tiny_onnx import write_folder

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
TOKENS = ("input_ids", "attention_mask", "position_ids")


class StandIn(SimpleNamespace):
    """The part of onnxruntime that is used; keeps what is asked for."""

    __version__ = "9.9"
    ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL=0)

    def __init__(self):
        super().__init__(asked=[], SessionOptions=self.options, InferenceSession=self.session)

    def get_available_providers(self):
        return [TENSORRT, CUDA, CPU]

    def options(self):
        return SimpleNamespace(add_session_config_entry=lambda *_: None)

    def session(self, source, options, providers):
        self.asked.append(providers)
        past = [SimpleNamespace(name=f"past_key_values.0.{kind}", shape=["b", 1, "p", 8]) for kind in ("key", "value")]
        given = [SimpleNamespace(name=name) for name in ("logits", "present.0.key", "present.0.value")]
        return SimpleNamespace(
            get_providers=lambda: [item if isinstance(item, str) else item[0] for item in providers],
            get_inputs=lambda: [*(SimpleNamespace(name=name) for name in TOKENS), *past],
            get_outputs=lambda: given,
            get_overridable_initializers=list,
        )


@pytest.fixture
def runtime(monkeypatch):
    found = StandIn()
    monkeypatch.setitem(sys.modules, "onnxruntime", found)
    return found


def write(folder, weights):
    folder.mkdir(exist_ok=True)
    (folder / GRAPH).write_bytes(b"graph")
    (folder / f"{GRAPH}.data").write_bytes(weights)
    return folder


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_libraries_of_wheels_are_found_before_the_session_is_made(provider, runtime, tmp_path, capsys):
    def preload():
        sys.stdout.write("Failed to load it\n")
        runtime.asked.append("libraries")

    runtime.preload_dlls = preload
    OrtTextModel(write(tmp_path, b"1"), 1, provider)
    assert runtime.asked[0] == "libraries"
    # A worker's standard output holds its result.
    assert capsys.readouterr().out == ""
    OrtTextModel(tmp_path, 1, CPU)
    assert runtime.asked.count("libraries") == 1
    # Before 1.21 there was no such function.
    del runtime.preload_dlls
    OrtTextModel(tmp_path, 1, provider)


def test_tensorrt_keeps_engines_beside_the_artifact(runtime, tmp_path):
    folder = write(tmp_path / "pruned", b"1")
    OrtTextModel(folder, 1, TENSORRT, half=True)
    (name, options), further = runtime.asked[-1]
    assert (name, further) == (TENSORRT, CUDA)
    engines = options.pop("trt_engine_cache_path")
    assert options == {"trt_fp16_enable": True, "trt_engine_cache_enable": True}
    assert [str(path) for path in folder.iterdir() if path.is_dir()] == [engines]
    OrtTextModel(folder, 1, TENSORRT, half=True)
    assert runtime.asked[-1][0][1]["trt_engine_cache_path"] == engines
    # Engines of other weights, or of another arithmetic, are not these.
    OrtTextModel(folder, 1, TENSORRT)
    assert runtime.asked[-1][0][1]["trt_fp16_enable"] is False
    assert runtime.asked[-1][0][1]["trt_engine_cache_path"] != engines
    OrtTextModel(write(folder, b"2"), 1, TENSORRT, half=True)
    assert runtime.asked[-1][0][1]["trt_engine_cache_path"] != engines


def test_a_graph_in_memory_leaves_no_engine(runtime):
    OrtGraph(b"graph", 1, TENSORRT, half=True)
    assert runtime.asked == [[(TENSORRT, {"trt_fp16_enable": True}), CUDA]]


def test_only_16_bit_weights_are_computed_in_16_bits():
    target = load_target("jetson-orin-trt")
    assert runtime_fields(target, True)["half"] is True
    assert "half" not in runtime_fields(target, False)
    assert "half" not in runtime_fields(target.model_copy(update={"quantization": "F32"}), True)


@pytest.mark.timeout(60)
def test_running_a_folder_leaves_nothing_in_the_users_home(tmp_path):
    folder = write_folder(tmp_path / "pruned")
    (tmp_path / "home").mkdir()
    told = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    script = "import pathlib, sys; from sieve_edge.device.ort import OrtTextModel as M; M(pathlib.Path(sys.argv[1]), 1)"
    environment = {**told, "HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", script, folder], env=environment, check=True)
    assert not list((tmp_path / "home").iterdir())

"""``scripts/target.sh`` reads of a target what ``sieve_edge.config`` does, before anything is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sieve_edge.config import Connection
from sieve_edge.resolve import load_target, shipped_targets

CHECKOUT = Path(__file__).parents[2]


def ask(target: str | Path) -> list[str]:
    done = subprocess.run([CHECKOUT / "scripts/target.sh", target], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("name", shipped_targets())
def test_it_agrees_with_the_package(name: str) -> None:
    target = load_target(name)
    runtime, accelerator, connection, image, its_name = ask(name)
    assert its_name == target.name
    assert runtime.partition("-")[0] == target.format
    assert (runtime == "gguf-stock") == (target.runtime == "llama.cpp-stock")
    assert (accelerator == "cuda") == target.accelerated
    ssh = isinstance(target.connection, Connection)
    assert connection == ("ssh" if ssh else target.connection or "none")
    assert image == (target.image or "none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("format: onnx\nexecution_provider: 'CUDAExecutionProvider'\nconnection: local", "onnx-gpu cuda local none"),
        ("format: onnx\nexecution_provider: CUDAExecutionProvider", "onnx cuda none none"),
        ('"format": "gguf"  # small\n"gpu_layers": 12', "gguf cuda none none"),
        ("format:   gguf\ngpu_layers: 0\nruntime:\n  llama.cpp-stock\n", "gguf-stock cpu none none"),
        ("format: gguf\r\nconnection: {port: 22, ssh: pi@board}\r\n", "gguf cpu ssh none"),
        ("connection:\n  # in the lab\n  port: 22\n  ssh: pi@board\nimage: 'a/b:1'\n", "onnx cpu ssh a/b:1"),
        ("# connection: {ssh: pi@board}\nconnection: null\nimage: ~\n", "onnx cpu none none"),
        ("description: |\n  format: gguf\n  gpu_layers: 3\n", "onnx cpu none none"),
    ],
)
def test_it_reads_yaml_as_people_write_it(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode())
    assert ask(file) == [*told.split(), "mine"]
    file.write_bytes(f"{text}\nname: 'my-board'  # the one in the lab\n".encode())
    assert ask(file) == [*told.split(), "my-board"]


def test_what_is_no_target_is_left_to_the_package() -> None:
    assert ask("no-such-target") == ["onnx", "cpu", "none", "none", "no-such-target"]


def test_make_passes_the_target_on() -> None:
    def planned(*words: str) -> str:
        done = subprocess.run(
            [str(shutil.which("make")), "-n", *words], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "scripts/engine.sh build 'my boards/mine.yaml' --quiet" in planned(
        "build", "TARGET=my boards/mine.yaml", "ARGS=--quiet"
    )
    assert "TARGET='jetson' scripts/engine.sh image" in planned("image", "TARGET=jetson")
    assert "dev torch onnx-gpu gguf demo" in planned("setup", "TARGET=x86-cuda")
    assert "dev torch onnx gguf demo" in planned("setup", "TARGET=jetson")


def test_make_finds_the_run_by_the_targets_own_name(tmp_path: Path) -> None:
    for part in ("Makefile", "scripts", "targets"):
        (tmp_path / part).symlink_to(CHECKOUT / part)
    for run in ("model-task-jetson-orin", "model-task-my-board"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text("name: my-board\n")
    for target, run in (("jetson", "model-task-jetson-orin"), (tmp_path / "mine.yaml", "model-task-my-board")):
        words = [str(shutil.which("make")), "-n", "test-vllm", f"TARGET={target}"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert f"check_vllm runs/{run} .interop" in done.stdout

"""``sieve-edge bundle --image``: what it starts from, what the engine is asked, and what check.sh finds there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sieve_edge.artifacts import Manifest, write_manifest
from sieve_edge.cli import cli
from sieve_edge.device.bundle import SCRIPTS, device_image, image_engine, make_image
from sieve_edge.errors import EnvironmentMissing
from sieve_edge.resolve import load_target, settings_json

# Writes down what it is asked, and the file that it would build from. Has the image "base:onnx" unless it is lame.
ENGINE = """#!/bin/sh
if [ "$1" = inspect ]; then
    if [ "$*" = "inspect --type image base:onnx" ] && [ "${0##*/}" != "$LAME" ]; then exit 0; fi
    echo "no such image" >&2
    exit 1
fi
echo "${0##*/} $*" >"$LOG"
while [ "$1" != -f ]; do shift; done
/bin/cat "$2" >>"$LOG"
if [ -n "$LAME" ]; then echo "no such image" >&2; exit 125; fi
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in wrote down; nothing else is on the path."""
    (tmp_path / "bin").mkdir()
    for name in ("PATH", "LOG"):
        monkeypatch.setenv(name, str(tmp_path / {"PATH": "bin", "LOG": "log"}[name]))
    return tmp_path / "log"


def install(log: Path, name: str) -> None:
    engine = log.parent / "bin" / name
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)


def finished(run: Path, target: str) -> Path:
    """A run as far as its target is read from it."""
    (run / "validate").mkdir(parents=True)
    settings = {"target": settings_json(load_target(target))}
    write_manifest(run / "validate", Manifest("validate", "", {}, settings, 0, {}, 0.0, {}))
    return run


@pytest.mark.parametrize(
    ("name", "machine", "options"),
    [
        ("docker", "aarch64", "--platform linux/arm64 "),
        ("podman", "x86_64", "--format docker --platform linux/amd64 "),
        ("buildah", None, "--format docker "),
    ],
)
def test_the_engine_is_told_format_and_platform(
    log: Path, tmp_path: Path, name: str, machine: str | None, options: str
) -> None:
    install(log, name)
    told = make_image(tmp_path / "mine.tar.gz", "mine:1", "base:onnx", machine, image_engine("base:onnx"))
    assert told == {"image": "mine:1", "engine": name}
    asked, *text = log.read_text(encoding="utf-8").splitlines()
    file = tmp_path / ".mine.tar.gz.Dockerfile"
    assert asked == f"{name} build {options}-f {file} -t mine:1 {tmp_path}"
    assert text == [
        "FROM base:onnx",
        "ADD mine.tar.gz /opt/",
        "WORKDIR /opt/mine",
        'ENTRYPOINT ["/bin/sh", "check.sh"]',
    ]
    assert not file.exists()


def test_an_engine_that_lacks_the_image_is_passed_over(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(log, "docker")
    install(log, "podman")
    assert image_engine("base:onnx") == "docker"
    monkeypatch.setenv("LAME", "docker")
    assert image_engine("base:onnx") == "podman"
    with pytest.raises(
        EnvironmentMissing, match=r"no engine has the image mine:2 \(docker: no such image; podman: no such"
    ):
        image_engine("mine:2")


def test_what_the_engine_says_is_one_line(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentMissing, match="--image needs one of docker, podman, buildah; install one"):
        image_engine("base")
    install(log, "podman")
    monkeypatch.setenv("LAME", "podman")
    with pytest.raises(EnvironmentMissing, match="podman cannot build mine:1 from base: no such image"):
        make_image(tmp_path / "mine.tar.gz", "mine:1", "base", None, "podman")


def test_where_no_engine_has_the_image_nothing_is_packed(log: Path, tmp_path: Path) -> None:
    install(log, "podman")
    run = finished(tmp_path / "run", "x86-cpu")
    done = CliRunner().invoke(cli, ["bundle", str(run), "--image", "mine:1"])
    assert done.exit_code == EnvironmentMissing.exit_code
    assert "no engine has the image sieve-edge-device:onnx (podman: no such image)" in done.stderr
    assert not list(run.glob("*.tar.gz*"))


@pytest.mark.parametrize(
    ("target", "tag"),
    [("x86-cpu", "onnx"), ("x86-gguf", "gguf"), ("x86-gguf-stock", "gguf-stock"), ("jetson", "gguf-cuda")],
)
def test_it_starts_from_the_image_that_make_image_makes(tmp_path: Path, target: str, tag: str) -> None:
    assert device_image(finished(tmp_path / "run", target)) == f"sieve-edge-device:{tag}"


def test_where_make_image_makes_none_it_is_said_before_anything_is_packed(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "x86-cuda")
    done = CliRunner().invoke(cli, ["bundle", str(run), "--image", "mine:1"])
    assert done.exit_code == EnvironmentMissing.exit_code
    assert "make image makes none with CUDAExecutionProvider" in done.stderr
    assert not list(run.glob("*.tar.gz*"))


def test_the_check_finds_what_is_in_its_image(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "check.sh", tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH"\n', encoding="utf-8")
    python.chmod(0o755)

    def path(**more: str) -> str:
        environment = {"PATH": os.defpath, "PYTHON": str(python), **more}
        done = subprocess.run(
            ["/bin/sh", tmp_path / "check.sh"], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert path() == "runner:site"
    assert path(PYTHONPATH="/opt/sieve-edge:/cache/packages") == "runner:site:/opt/sieve-edge:/cache/packages"

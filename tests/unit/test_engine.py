"""``scripts/engine.sh`` takes docker or podman only where it can run the image, and says what it took and why."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TOOLS = (
    *("bash", "cut", "dirname", "env", "find", "grep", "id", "mkdir", "realpath", "sha256sum", "sort", "timeout"),
    *("touch", "uname", "xargs"),
)
SCRIPT = "#!/usr/bin/env bash\n"
# Answers like an engine whose image carries $LABEL, writes down what it is asked to run, and ends like what it ran.
ENGINE = f"""{SCRIPT}
case "$1 $2" in
    "info ") [[ -z $DEAF ]] || {{ echo "first line" >&2; echo "no daemon" >&2; exit 1; }} ;;
    "image inspect") [[ -n $LABEL ]] || exit 1; echo "$LABEL" ;;
    "build "*) echo "$0 $*" >>"$LOG" ;;
    "run "*)
        [[ -z $LAME ]] || {{ echo "crun: unknown cgroups" >&2; exit 126; }}
        echo "${{0##*/}} $*" >>"$LOG"
        [[ $* != *" build "* ]] || exit "$ENDS"
        ;;
esac
"""


class Machine:
    """A checkout with the script, and a PATH that holds nothing but what it needs and the engines of a test."""

    def __init__(self, root: Path) -> None:
        self.checkout, self.bin, self.log = root / "checkout", root / "bin", root / "log"
        for folder in ("scripts", "docker/llama.cpp", "sieve_edge", "targets", ".venv/bin"):
            (self.checkout / folder).mkdir(parents=True)
        for name in ("constraints.txt", "pyproject.toml", "demo-requirements.txt", "docker/build.Dockerfile"):
            (self.checkout / name).write_bytes((CHECKOUT / name).read_bytes())
        shutil.copy(CHECKOUT / "docker/device.Dockerfile", self.checkout / "docker")
        shutil.copy(CHECKOUT / "scripts/engine.sh", self.checkout / "scripts")
        self.write(self.checkout / "scripts/setup.sh", f'{SCRIPT}echo "setup $*" >>"$LOG"\n')
        self.write(self.checkout / ".venv/bin/sieve-edge", f'{SCRIPT}echo "local $*" >>"$LOG"; exit "$ENDS"\n')
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.environment = {"PATH": str(self.bin), "HOME": str(root), "LOG": str(self.log), "ENDS": "4"}

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def install(self, *engines: str) -> None:
        for name in engines:
            self.write(self.bin / name, ENGINE)

    def label(self) -> str:
        """Label that an image of these sources carries, as ``image`` gives it."""
        self.run("image", "build", BUILDER=str(self.bin / "docker") + " build")
        told = self.log.read_text(encoding="utf-8")
        self.log.unlink()
        return told.partition("sieve-edge.sources=")[2].split()[0]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts/engine.sh", *words],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self, **more: str) -> tuple[int, str, list[str]]:
        """Exit code, standard error and what was run."""
        done = self.run("build", "x86-cpu", "--set", "tolerance=0.02", **more)
        return done.returncode, done.stderr, self.log.read_text(encoding="utf-8").splitlines()


LOCAL = ["setup torch onnx demo", "local build --target x86-cpu --set tolerance=0.02"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_engines_it_builds_here_and_keeps_the_exit_code(machine: Machine) -> None:
    code, told, ran = machine.build()
    assert code == 4
    assert told == "engine: local, in .venv: docker is not installed; podman is not installed\n"
    assert ran == LOCAL


def test_engine_local_asks_nobody(machine: Machine) -> None:
    machine.install("docker")
    _, told, ran = machine.build(ENGINE="local", LABEL="x")
    assert told == "engine: local, in .venv: ENGINE=local\n"
    assert ran == LOCAL


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"DEAF": "1"}, "docker does not answer (no daemon)"),
        ({}, "docker has no image sieve-edge:cpu, 'make image' makes it"),
        ({"LABEL": "old"}, "docker's image sieve-edge:cpu is not of these sources, 'make image' renews it"),
        ({"LABEL": "", "LAME": "1"}, "docker cannot run sieve-edge:cpu (crun: unknown cgroups)"),
    ],
)
def test_an_engine_that_cannot_run_the_image_is_passed_over(
    machine: Machine, state: dict[str, str], reason: str
) -> None:
    machine.install("docker")
    if "LAME" in state:
        state = {**state, "LABEL": machine.label()}
    code, told, ran = machine.build(**state)
    assert code == 4
    assert told == f"engine: local, in .venv: {reason}; podman is not installed\n"
    assert ran == LOCAL
    code = machine.run("build", "x86-cpu", ENGINE="docker", **state).returncode
    assert code == 5


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_the_first_that_can_builds_with_validate_off_the_network(machine: Machine, name: str) -> None:
    machine.install("docker", "podman")
    label = machine.label()
    if name == "podman":
        (machine.bin / "docker").unlink()
    code, told, ran = machine.build(LABEL=label, ENGINE_ARGS="--cpus 2")
    assert code == 4
    assert told.splitlines()[0] == f"engine: {name}, image sieve-edge:cpu"
    probe, fetch, export, build = ran
    assert probe == f"{name} run --rm sieve-edge:cpu true"
    assert "--require-hashes" in fetch
    for line in (fetch, export, build):
        assert line.startswith(f"{name} run --rm ")
        assert "--read-only" in line
        assert "--cap-drop all" in line
        assert "--cpus 2" in line
        assert f"--user {os.getuid()}:{os.getgid()}" in line
        assert f"--volume {machine.checkout}:{machine.checkout}:ro " in line
    assert export.endswith(" sieve-edge:cpu sieve-edge export --target x86-cpu --set tolerance=0.02")
    assert "--network" not in export
    assert " --network none " in build
    assert build.endswith(" sieve-edge:cpu sieve-edge build --target x86-cpu --set tolerance=0.02")
    assert "--gpus" not in "".join(ran)
    assert len(machine.build(LABEL=label)[2]) == len(ran) + 3  # the demo is there


@pytest.mark.parametrize(("name", "flag"), [("docker", "--gpus=all"), ("podman", "--device=nvidia.com/gpu=all")])
def test_a_target_for_cuda_gets_the_gpus(machine: Machine, name: str, flag: str) -> None:
    machine.install("docker", name)
    _, _, ran = machine.build(LABEL=machine.label(), RUNTIME="onnx-gpu", ENGINE=name)
    assert len(ran) == 4
    assert all(flag in line and "sieve-edge:cuda" in line for line in ran)


def test_an_engine_asked_for_but_missing_is_one_line_and_exit_5(machine: Machine) -> None:
    done = machine.run("build", "x86-cpu", ENGINE="podman")
    assert (done.returncode, done.stderr) == (5, "engine: ENGINE=podman: podman is not installed\n")
    assert not machine.log.exists()


def test_other_words_are_usage_errors(machine: Machine) -> None:
    for words, environment in ((("build", "x86-cpu"), {"ENGINE": "lxc"}), (("build",), {}), (("image", "both"), {})):
        done = machine.run(*words, **environment)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_images_need_an_engine_and_get_what_their_files_ask_for(machine: Machine) -> None:
    done = machine.run("image")
    assert done.returncode == 5
    assert done.stderr.startswith("engine: no image without docker or podman: docker is not installed; podman is")
    machine.install("docker")
    assert machine.run("image", JOBS="1", RUN_IMAGE="small", PLATFORM="linux/arm64").returncode == 0
    pipeline, device = machine.log.read_text(encoding="utf-8").splitlines()
    assert "--tag sieve-edge:cpu" in pipeline
    assert "ACCELERATOR=cpu" in pipeline
    assert "RUN_IMAGE" not in pipeline
    assert "JOBS=1" in pipeline
    assert "--tag sieve-edge-device:onnx" in device
    assert "RUN_IMAGE=small" in device
    assert "--build-arg RUNTIME=onnx " in device
    assert device.endswith(" --platform linux/arm64 .")

"""``scripts/engine.sh`` takes docker or podman only where it can run the image, and says what it took and why."""

import os
from pathlib import Path

import pytest

from tests.machine import Machine

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
        ({}, "docker has no image sieve-edge:cpu, 'make image TARGET=x86-cpu' makes it"),
        (
            {"LABEL": "old"},
            "docker's image sieve-edge:cpu is not of these sources, 'make image TARGET=x86-cpu' renews it",
        ),
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
    assert len(machine.build(LABEL=label)[2]) == len(ran) - 1  # the demo is there


@pytest.mark.parametrize(
    ("target", "name"),
    [("x86-cuda", "podman"), ("jetson", "podman"), ("jetson", "docker"), ("jetson-orin-trt", "docker")],
)
def test_a_target_for_cuda_gets_the_gpus(machine: Machine, target: str, name: str) -> None:
    machine.install("docker", name)
    flag = {"docker": "--gpus=all", "podman": "--device=nvidia.com/gpu=all"}[name]
    _, _, ran = machine.build(target, LABEL=machine.label(TARGET=target), ENGINE=name)
    assert len(ran) == 4
    assert all(flag in line and "sieve-edge:cuda" in line for line in ran)
    assert ran[-1].endswith(f"sieve-edge build --target {target} --set device=cuda --set tolerance=0.02")


@pytest.mark.parametrize(
    "named",
    [("--device", "cuda:0,cuda:1"), ("--device=cuda:1",), ("--set", "device=cpu"), ("--set=device=cpu",)],
    ids=" ".join,
)
def test_a_device_that_an_option_names_is_not_named_twice(machine: Machine, named: tuple[str, ...]) -> None:
    machine.install("docker")
    label = machine.label(TARGET="x86-cuda")
    _, _, ran = machine.build("x86-cuda", ("--require-device", *named), LABEL=label)
    assert ran[-1].endswith(f"sieve-edge build --target x86-cuda --require-device {' '.join(named)}")
    _, _, ran = machine.build("x86-cuda", ("--require-device",), LABEL=label)
    assert ran[-1].endswith("sieve-edge build --target x86-cuda --set device=cuda --require-device")


@pytest.mark.parametrize(
    ("target", "made", "reason"),
    [
        ("x86-gguf", {"LLAMA_CPP": "none"}, "is without llama.cpp"),
        ("x86-gguf", {"LLAMA_CPP": "gguf-stock"}, "is without llama.cpp"),
        ("x86-gguf-stock", {"LLAMA_CPP": "none"}, "is without llama.cpp"),
        ("x86-gguf-stock", {"LLAMA_CPP": "gguf-stock"}, None),
        ("x86-gguf-stock", {}, None),
        ("x86-cpu", {"LLAMA_CPP": "none"}, None),
        ("jetson", {"ACCELERATOR": "cpu"}, "is not for CUDA"),
    ],
)
def test_an_image_that_lacks_what_the_target_needs_is_passed_over(
    machine: Machine, target: str, made: dict[str, str], reason: str | None
) -> None:
    machine.install("docker")
    code, told, _ = machine.build(target, LABEL=machine.label(**made), ENGINE="docker", IMAGE="mine")
    assert code == (4 if reason is None else 5)
    if reason is not None:
        needed = f"docker's image mine {reason}, which {target} needs; 'make image TARGET={target}' makes one"
        assert told == f"engine: ENGINE=docker: {needed}\n"


def target_file(folder: Path, *changes: str) -> Path:
    """A user's target, written as YAML may be."""
    folder.mkdir(exist_ok=True)
    file = folder / "mine.yaml"
    file.write_text("\n".join(("name: mine", *changes, "")), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_target_outside_the_checkout_is_there_in_the_container(machine: Machine, tmp_path: Path, name: str) -> None:
    machine.install("docker", name)
    file = target_file(tmp_path / "elsewhere", "format: onnx")
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    for target, mounted in ((str(file), [file]), ("../elsewhere/mine.yaml", [file]), (str(link), [link, file])):
        _, _, ran = machine.build(target, LABEL=machine.label(), ENGINE=name, MODELS=str(file))
        for line in ran[-2:]:
            assert [line.count(f" --volume {each}:{each}:ro ") for each in mounted] == [1] * len(mounted), line
    inside = target_file(machine.checkout / "targets")
    _, _, ran = machine.build("targets/mine.yaml", LABEL=machine.label(), ENGINE=name)
    assert str(inside) not in ran[-1]


SSH = ("format: gguf", "connection:", "  # in the lab", '  ssh: "pi@board"')


def test_a_device_behind_ssh_is_measured_from_outside_the_container(machine: Machine, tmp_path: Path) -> None:
    machine.install("docker")
    file = target_file(tmp_path / "elsewhere", *SSH)
    code, told, ran = machine.build(str(file), LABEL=machine.label())
    assert code == 4
    assert "engine: validate runs on this machine, in .venv: the container has no ssh client" in told
    setup, export, validate, build = ran[-4:]
    assert setup == "setup data rouge judge demo"
    assert " sieve-edge export --target " in export
    assert validate == f"local validate --target {file} --set tolerance=0.02"
    assert build.endswith(f" sieve-edge build --target {file} --set tolerance=0.02")
    # Where the device was not measured, nothing is reported.
    code, _, ran = machine.build(str(file), LABEL=machine.label(), LOCAL_ENDS="3")
    assert code == 3
    assert ran[-1] == validate


def test_a_search_that_times_a_device_behind_ssh_runs_here(machine: Machine, tmp_path: Path) -> None:
    machine.install("docker")
    file = target_file(tmp_path / "elsewhere", *SSH)
    timed = ("--set", "search.max_time_per_token_ms=20")
    code, told, ran = machine.build(str(file), timed, LABEL=machine.label())
    assert code == 4
    assert (
        told
        == f"engine: local, in .venv: the search needs times of {file}, and the pipeline's image has no ssh client\n"
    )
    assert ran == ["setup torch gguf demo", f"local build --target {file} --set search.max_time_per_token_ms=20"]
    code, told, ran = machine.build(str(file), timed, LABEL=machine.label(), ENGINE="docker")
    assert (code, ran) == (5, [])
    assert told.endswith("ENGINE=local builds without\n")


def test_a_machine_that_is_the_device_gets_its_own_llama_cpp_for_cuda(machine: Machine, tmp_path: Path) -> None:
    machine.install("docker")
    file = target_file(tmp_path, "format: gguf", "gpu_layers: 999", "connection: local")
    code, told, ran = machine.build(str(file), (), LABEL=machine.label(TARGET=str(file)))
    assert code == 4
    assert told == "engine: local, in .venv: the pipeline's image has no llama.cpp for this machine's GPU\n"
    assert ran == ["setup torch gguf demo for cuda", f"local build --target {file}"]


def test_what_only_validate_knows_is_not_asked_of_export(machine: Machine) -> None:
    machine.install("docker")
    _, _, ran = machine.build("x86-cpu", ("--require-device", "--quiet"), LABEL=machine.label())
    export, build = ran[-2:]
    assert export.endswith(" sieve-edge export --target x86-cpu --quiet")
    assert build.endswith(" sieve-edge build --target x86-cpu --require-device --quiet")


def test_an_engine_asked_for_but_missing_is_one_line_and_exit_5(machine: Machine) -> None:
    done = machine.run("build", "x86-cpu", ENGINE="podman")
    assert (done.returncode, done.stderr) == (5, "engine: ENGINE=podman: podman is not installed\n")
    assert not machine.log.exists()


def test_other_words_are_usage_errors(machine: Machine) -> None:
    for words, environment in ((("build", "x86-cpu"), {"ENGINE": "lxc"}), (("build",), {}), (("image", "both"), {})):
        done = machine.run(*words, **environment)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1

"""``scripts/engine.sh image`` gives each image what its file asks for, and the target."""

from pathlib import Path

import pytest

from tests.machine import CHECKOUT, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


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


def device_builds(machine: Machine, **more: str) -> list[str]:
    assert machine.run("image", "device", **more).returncode == 0
    ran = machine.log.read_text(encoding="utf-8").splitlines()
    machine.log.unlink()
    return ran


def test_the_device_image_starts_from_the_one_that_the_target_names(machine: Machine) -> None:
    machine.install("docker")
    base, device = device_builds(machine, TARGET="jetson", CUDA_ARCHITECTURES="72")
    assert "--file docker/base.Dockerfile --tag sieve-edge-base:gguf-cuda " in base
    assert "--build-arg BASE_IMAGE=nvcr.io/nvidia/l4t-jetpack:r36.4.0" in base
    assert "--tag sieve-edge-device:gguf-cuda " in device
    assert "--build-arg BASE_IMAGE=sieve-edge-base:gguf-cuda" in device
    assert "--build-arg ACCELERATOR=cuda" in device
    assert "--build-arg CUDA_ARCHITECTURES=72" in device
    (device,) = device_builds(machine, TARGET="jetson", BASE_IMAGE="mine")
    assert "--build-arg BASE_IMAGE=mine" in device
    (device,) = device_builds(machine, TARGET="x86-gguf")
    assert "BASE_IMAGE=" not in device
    assert "--build-arg ACCELERATOR=cpu" in device


@pytest.mark.parametrize("target", ["jetson", "jetson-orin-trt", "x86-cuda"])
def test_a_device_image_for_cuda_is_not_made_in_passing(machine: Machine, target: str) -> None:
    machine.install("docker")
    done = machine.run("image", TARGET=target)
    assert done.returncode == 0
    assert "no device image" in done.stderr.splitlines()[-1]
    (pipeline,) = machine.log.read_text(encoding="utf-8").splitlines()
    assert "--tag sieve-edge:cuda" in pipeline


def test_llama_cpp_of_the_pipeline_needs_no_cuda_toolkit() -> None:
    # ACCELERATOR is a build argument, and so an environment variable of the commands after it.
    text = (CHECKOUT / "docker/build.Dockerfile").read_text(encoding="utf-8")
    after = text[text.index("ARG ACCELERATOR") :]
    assert "ACCELERATOR=cpu scripts/setup.sh" in after
    assert after.count("scripts/setup.sh") == 1

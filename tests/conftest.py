"""Fixtures of all tests, the time cap of each folder, and isolation from the user's files."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch and transformers are imported: sums depend on threads, and nothing may be fetched or cached outside.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="sieve-edge-tests-")

import pytest
import torch

from tests import pico as pico_models

SECONDS = {"unit": 20, "property": 60, "golden": 60, "device": 120, "integration": 300, "gpu": 300, "real": 900}

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its folder's time cap, fixtures included, and skip what this machine cannot run."""
    tests = Path(__file__).parent
    # The longest first, so that no worker is left with them when the others have ended.
    items.sort(key=lambda item: item.path.relative_to(tests).parts[0] != "real")
    for item in items:
        folder = item.path.relative_to(tests).parts[0]
        if folder in SECONDS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS[folder]))
        if folder == "gpu":
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and shutil.which("nvidia-smi") is None:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU: nvidia-smi is not installed"))


@pytest.fixture(scope="session", autouse=True)
def _remove_hugging_face_home() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_HOME"])


@pytest.fixture(scope="session")
def pico_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the trained pico models, one directory a family."""
    return tmp_path_factory.mktemp("pico")


@pytest.fixture(scope="session")
def pico(pico_root: Path) -> Callable[[str], Path]:
    """Function from a family to the directory of its pico model, trained when it is first asked for."""

    def find(family: str) -> Path:
        folder = pico_root / family
        return folder if folder.is_dir() else pico_models.make_pico(family, folder)

    return find


@pytest.fixture(scope="session")
def toy_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task YAML over the toy language; the transfer source has longer sentences."""
    return pico_models.write_task(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_target(tmp_path_factory: pytest.TempPathFactory, pico_root: Path, toy_task: Path) -> Path:
    """Target YAML for pico models on ONNX Runtime; its default model is there once ``pico("llama")`` was asked for."""
    return pico_models.write_target(tmp_path_factory.mktemp("target"), pico_root / "llama", toy_task)

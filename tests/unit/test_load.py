"""Loading a dense model: what a user gives wrong ends in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sieve_edge.errors import EnvironmentMissing, ModelError
from sieve_edge.model.load import load_model, shared_copy
from sieve_edge.model.source import find_model
from tests.pico import make_model, make_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "Pico-Llama"
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def _refused(reference: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(find_model(reference), "cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_loads_in_float32_for_evaluation(saved: Path) -> None:
    source = find_model(str(saved))
    loaded = load_model(source, "cpu")
    assert source.name == "pico-llama"
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert [spec.name for spec in loaded.specs[:4]] == ["0.qkv", "0.o", "0.gate_up", "0.down"]
    assert loaded.encode("Text: a film") == make_tokenizer().encode("Text: a film")
    assert source.weight_bytes() == (saved / "model.safetensors").stat().st_size


def test_the_hash_follows_the_content(folder: Path) -> None:
    before = find_model(str(folder)).sha256()
    assert find_model(str(folder)).sha256() == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert find_model(str(folder)).sha256() != before


def test_a_copy_shares_weights_but_not_modules(saved: Path) -> None:
    model = load_model(find_model(str(saved)), "cpu").model
    copied = shared_copy(model)
    assert copied.model.layers[0] is not model.model.layers[0]
    pairs = zip(copied.parameters(), model.parameters(), strict=True)
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)


def test_a_reference_that_is_nothing(tmp_path: Path) -> None:
    message = _refused(str(tmp_path / "nowhere"))
    assert "not a directory, a .gguf file, package:NAME/FILE or hf:ORGANISATION/NAME" in message


def test_a_directory_without_config(tmp_path: Path) -> None:
    assert "has no config.json; give a Hugging Face model directory" in _refused(str(tmp_path))


def test_a_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "cannot read its configuration" in _refused(str(folder))


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = _refused(str(folder))
    assert "cannot load it" in message
    assert "is the download complete?" in message


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "cannot load it" in _refused(str(folder))


@pytest.mark.parametrize("family", ["mamba", "no-such-family"])
def test_an_unknown_family(folder: Path, family: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": family}))
    assert f"{family}" in _refused(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = _refused(str(folder))
    assert message.endswith("weight model.layers.1.mlp.up_proj.weight has values that are not finite")


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(
        EnvironmentMissing, match="package 'no_such_package' is not installed; make demo or make demo-rag"
    ):
        find_model("package:no_such_package/model.gguf")

"""The four matrices of each layer, for every shipped family."""

from typing import Any

import pytest
import torch
from torch import nn

from sieve_edge.errors import ModelError
from sieve_edge.model.matrices import (
    count_params,
    find_matrices,
    known_architectures,
    linear_params,
    stacked_bias,
    stacked_weight,
)
from tests.pico import FAMILIES, make_model

SEPARATE = {"qkv": (32, 16, 16), "o": (32,), "gate_up": (64, 64), "down": (32,)}
PARTS: dict[str, dict[str, tuple[int, ...]]] = {
    "phi3": {"qkv": (64,), "o": (32,), "gate_up": (128,), "down": (32,)},
    "gpt2": {"qkv": (96,), "o": (32,), "gate_up": (64,), "down": (32,)},
}
SIDES = {"qkv": "pre", "o": "post", "gate_up": "pre", "down": "post"}


def test_every_shipped_architecture_is_tested() -> None:
    assert sorted(known_architectures()) == sorted(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_files_have_one_shape(family: str) -> None:
    architecture = known_architectures()[family]
    assert set(architecture) - {"gguf"} == {"model_type", "layers", "matrices"}
    assert architecture["model_type"] == family
    assert {kind: entry["side"] for kind, entry in architecture["matrices"].items()} == SIDES


@pytest.mark.parametrize("family", FAMILIES)
def test_four_matrices_a_layer_with_their_shapes(family: str) -> None:
    model = make_model(family)
    specs = find_matrices(model, family)
    assert [spec.name for spec in specs] == [f"{layer}.{kind}" for layer in (0, 1) for kind in SIDES]
    for spec in specs:
        assert spec.part_features == PARTS.get(family, SEPARATE)[spec.kind]
        assert spec.out_features == sum(spec.part_features)
        assert spec.in_features == (64 if spec.kind == "down" else 32)
        assert spec.side == SIDES[spec.kind]
        assert len(spec.paths) == len(spec.part_features)
        assert stacked_weight(model, spec).shape == (spec.out_features, spec.in_features)
    assert linear_params(specs) == sum(stacked_weight(model, spec).numel() for spec in specs)
    assert linear_params(specs) < count_params(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stacked_weight_is_what_the_parts_multiply_with(family: str) -> None:
    model = make_model(family)
    for spec in find_matrices(model, family):
        hidden = torch.randn(3, spec.in_features)
        parts = torch.cat([model.get_submodule(path)(hidden) for path in spec.paths], dim=-1)
        stacked = nn.functional.linear(hidden, stacked_weight(model, spec), stacked_bias(model, spec))
        torch.testing.assert_close(stacked, parts)


def test_biases_are_stacked_where_a_family_has_them() -> None:
    model = make_model("qwen2")
    qkv, o = find_matrices(model, "qwen2")[:2]
    model.get_submodule(qkv.paths[1]).bias.data.fill_(2.0)
    bias = stacked_bias(model, qkv)
    assert bias is not None
    assert bias.tolist() == [0.0] * 32 + [2.0] * 16 + [0.0] * 16
    assert stacked_bias(model, o) is None


def test_a_part_without_bias_counts_as_zero() -> None:
    model = make_model("qwen2")
    qkv = find_matrices(model, "qwen2")[0]
    model.get_submodule(qkv.paths[0]).bias.data.fill_(1.0)
    model.get_submodule(qkv.paths[2]).bias = None
    bias = stacked_bias(model, qkv)
    assert bias is not None
    assert bias.tolist() == [1.0] * 32 + [0.0] * 32


def test_an_unknown_family_names_the_file_to_add() -> None:
    with pytest.raises(ModelError) as caught:
        find_matrices(nn.Module(), "mamba")
    assert "model family 'mamba' is not known (gemma3_text, gpt2, llama, " in str(caught.value)
    assert "add sieve_edge/model/architectures/mamba.json" in str(caught.value)


def test_a_model_without_the_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"llama\.json: the model has no module 'model\.layers'"):
        find_matrices(nn.Module(), "llama")


def _llama_layer() -> tuple[Any, Any]:
    model = make_model("llama")
    return model, model.model.layers[1]


def test_a_missing_matrix_is_named() -> None:
    model, layer = _llama_layer()
    del layer.mlp.down_proj
    with pytest.raises(ModelError, match=r"matrix 1\.down: the model has no linear 'model\.layers\.1\.mlp\.down_proj'"):
        find_matrices(model, "llama")


def test_a_linear_that_no_matrix_names_is_refused() -> None:
    model, layer = _llama_layer()
    layer.mlp.extra_proj = nn.Linear(4, 4)
    with pytest.raises(ModelError, match=r"linears that no matrix names: model\.layers\.1\.mlp\.extra_proj"):
        find_matrices(model, "llama")


def test_parts_must_read_inputs_of_one_width() -> None:
    model, layer = _llama_layer()
    layer.mlp.up_proj = nn.Linear(16, 64)
    with pytest.raises(ModelError, match=r"matrix 1\.gate_up: its parts read inputs of \[16, 32\] features"):
        find_matrices(model, "llama")

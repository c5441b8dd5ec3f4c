"""What tuning trains: adapters on every linear but the head, or those linears' weights."""

import pytest
import torch

from sieve_edge.model.factored import FactoredLinear, install_
from sieve_edge.model.matrices import find_matrices
from sieve_edge.recipe import TuneRecipe
from sieve_edge.tune.adapters import trainable
from tests.tiny_gguf import make_model

# Enough that peft shortens the list of names that it is given.
LAYERS = 4
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def pruned(tied):
    """A model with a shared projection in its first layer, a pair in its second, and the other matrices dense."""
    model = make_model("llama", num_hidden_layers=LAYERS, tie_word_embeddings=tied)
    for spec in find_matrices(model, "llama"):
        if spec.name in ("0.qkv", "1.down"):
            install_(model, spec.paths, FactoredLinear(spec.in_features, spec.part_features, 4))
    return model


def expected():
    own = {f"{layer}.self_attn.{name}" for layer in range(LAYERS) for name in ATTENTION}
    own |= {f"{layer}.mlp.{name}" for layer in range(LAYERS) for name in MLP}
    own -= {*(f"0.self_attn.{name}" for name in ATTENTION[:3]), "1.mlp.down_proj"}
    factors = {f"{path}.{name}" for path in ("0.self_attn.q_proj", "1.mlp.down_proj") for name in ("down", "up")}
    return {f"model.layers.{path}" for path in own | factors}


@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_but_the_head_gets_one_adapter(tied):
    model = pruned(tied)
    names = set(model.state_dict())
    ids = torch.tensor([[2, 3, 5]])
    before = model(ids).logits
    with trainable(model, TuneRecipe(method="lora", rank=2), 0) as (trained, finished):
        parts = [name.partition(".lora_") for name in trained]
        assert sorted(path for path, _, _ in parts) == sorted([*expected(), *expected()])
        assert {(path, part[0]) for path, _, part in parts} == {(path, part) for path in expected() for part in "AB"}
        finished()
    assert set(model.state_dict()) == names, "adapters end in the weights"
    torch.testing.assert_close(model(ids).logits, before)


@pytest.mark.parametrize("tied", [True, False])
def test_full_factors_are_the_weights_of_the_same_linears(tied):
    with trainable(pruned(tied), TuneRecipe(method="full_factors"), 0) as (trained, _):
        assert set(trained) == {f"{path}.weight" for path in expected()}

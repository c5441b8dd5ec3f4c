"""Width pruning of a model: what belongs together, what is counted, and what the narrow model computes."""

import copy

import numpy as np
import pytest
import torch

from sieve_edge.errors import ModelError
from sieve_edge.learn.widths import keep_inputs, keep_order
from sieve_edge.model.factored import FactoredLinear, install_, install_layout_
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.levels import kept_params, rank_at
from sieve_edge.model.matrices import find_matrices, linear_params, stacked_bias, stacked_weight
from sieve_edge.model.widths import narrow_, width_specs
from tests.tiny_gguf import make_model


def specs_of(model):
    return width_specs(find_matrices(model, model.config.model_type), model.config)


def projections(model, spec):
    weight_OI = stacked_weight(model, spec).double()
    rows = torch.randn(4 * spec.in_features, spec.in_features, generator=torch.Generator().manual_seed(1)).double()
    factors = keep_inputs(weight_OI, rows.T @ rows / len(rows), weight_OI.T @ weight_OI, spec.unit)
    return factors.down_RI.float(), factors.up_RO.float()


def logits(model):
    ids = np.arange(20, dtype=np.int64)[None]
    return TorchTextModel(model, "cpu").forward(ids, np.ones_like(ids), np.arange(20)[None], [], 0)[0]


def test_a_block_counts_as_one_and_heads_go_with_their_queries():
    model = make_model("llama")
    specs = specs_of(model)
    assert [spec.name for spec in specs] == ["0.o", "0.down", "1.o", "1.down"]
    assert linear_params(specs) == linear_params(find_matrices(model, "llama"))
    assert [spec.unit for spec in specs[:2]] == [32, 1], "two key/value heads share four queries of 16"
    assert [rank_at(specs[0], factor, "width", 8) for factor in (1.0, 0.9, 0.5, 0.05)] == [None, 32, 32, 32]
    assert [rank_at(specs[1], factor, "width", 8) for factor in (1.0, 0.9, 0.5, 0.05)] == [None, 112, 64, 8]


def test_families_without_a_graph_for_it_are_refused():
    model = make_model("qwen2")
    with pytest.raises(ModelError, match="only llama, mistral"):
        specs_of(model)


@pytest.mark.parametrize("bias", [False, True])
def test_a_narrow_model_computes_what_its_projections_say(bias):
    model = make_model("llama", attention_bias=bias, mlp_bias=bias)
    specs, ranks = specs_of(model), {"0.o": 32, "0.down": 48, "1.o": None, "1.down": 8}
    narrow, factored = copy.deepcopy(model), copy.deepcopy(model)
    layout = {}
    for spec in specs:
        rank = ranks[spec.name]
        if rank is None:
            continue
        down_RI, up_RO = (factor[:rank] for factor in projections(model, spec))
        layout |= narrow_(narrow, spec, down_RI, up_RO)
        bias_O = stacked_bias(model, spec)
        pair = FactoredLinear(spec.in_features, spec.part_features, rank, bias=bias_O is not None)
        state = {"down.weight": down_RI, "up.weight": up_RO.T} | ({} if bias_O is None else {"bias": bias_O})
        pair.load_state_dict(state)
        install_(factored, spec.paths, pair)
    expected = logits(factored)
    assert np.abs(logits(narrow) - expected).max() < 1e-4
    assert np.abs(logits(model) - expected).max() > 1e-2, "a model that did not change would prove nothing"
    weights = sum(
        parameter.numel() for name, parameter in narrow.named_parameters() if parameter.dim() == 2 and "layers" in name
    )
    assert weights == kept_params(specs, ranks, "width")
    rebuilt = make_model("llama", attention_bias=bias, mlp_bias=bias)
    install_layout_(rebuilt, layout)
    rebuilt.load_state_dict(narrow.state_dict())
    assert np.array_equal(logits(rebuilt), logits(narrow))


def test_a_projection_that_reads_too_much_is_refused():
    model = make_model("llama")
    spec = specs_of(model)[1]
    with pytest.raises(ModelError, match="reads 128 inputs"):
        narrow_(model, spec, torch.ones(8, spec.in_features), torch.ones(8, spec.out_features))


def test_units_of_a_real_size_are_ordered_with_two_threads():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(576, 1200, dtype=torch.float64, generator=generator)
    gram, threads = inputs @ inputs.T / 1200, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        order = keep_order(gram, gram, 192)
    finally:
        torch.set_num_threads(threads)
    assert sorted(order.tolist()) == list(range(576))

"""Factored linears: rank arithmetic, the three storages, and stacks."""

import pytest
import torch
from torch import Tensor, nn

from sieve_edge.model.factored import FactoredLinear, install_, install_layout_
from sieve_edge.model.levels import factored_params, rank_for

SHAPES = [(32, 32), (64, 32), (32, 64), (960, 576), (576, 1536)]


@pytest.mark.parametrize("storage", ["pair", "pivoted"])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
@pytest.mark.parametrize("factor", [0.05, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_rank_for_is_the_largest_that_fits_the_budget(
    factor: float, out_features: int, in_features: int, storage: str
) -> None:
    dense = out_features * in_features
    rank = rank_for(factor, out_features, in_features, storage, 1)
    if rank is None:
        best = min(out_features, in_features) - 1
        assert factored_params(best, out_features, in_features, storage) <= factor * dense
        return
    assert factored_params(rank, out_features, in_features, storage) <= max(factor * dense, out_features + in_features)
    assert factored_params(rank + 1, out_features, in_features, storage) > factor * dense


@pytest.mark.parametrize("storage", ["pair", "pivoted"])
def test_rank_for_rounds_down_to_the_multiple_and_never_to_zero(storage: str) -> None:
    exact = rank_for(0.5, 960, 576, storage, 1)
    assert exact is not None
    assert rank_for(0.5, 960, 576, storage, 16) == exact // 16 * 16
    assert rank_for(0.001, 960, 576, storage, 16) == 16


def test_rank_for_stays_dense_where_factors_save_nothing() -> None:
    assert rank_for(1.0, 960, 576, "pair", 16) is None
    assert rank_for(0.001, 16, 16, "pair", 16) is None


def test_pivoted_storage_keeps_more_rank_at_the_same_size() -> None:
    pair, pivoted = (rank_for(0.75, 576, 576, storage, 1) for storage in ("pair", "pivoted"))
    assert pair == 216
    assert pivoted == 288


@pytest.mark.parametrize("factor", [0.0, -0.1, 1.01])
def test_rank_for_refuses_a_factor_outside_its_range(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"factor {factor} must be in \(0, 1\]"):
        rank_for(factor, 8, 8, "pair", 1)


def _dense_weight(layer: FactoredLinear) -> Tensor:
    """Multiply the factors out, independently of the module's own slicing: pivots become an identity."""
    start, rank = layer.pivot_start, layer.rank
    eye = torch.eye(rank)
    if layer.storage == "pivoted_input":
        coef = layer.coef.weight
        return layer.up.weight @ torch.cat([coef[:, :start], eye, coef[:, start:]], 1)
    if layer.storage == "pivoted_output":
        coef = layer.coef.weight
        return torch.cat([coef[:start], eye, coef[start:]]) @ layer.down.weight
    return layer.up.weight @ layer.down.weight


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("storage", "start"),
    [("pair", 0), *((f"pivoted_{side}", start) for side in ("input", "output") for start in (0, 3, -1))],
)
def test_every_storage_equals_up_times_down(storage: str, start: int, bias: bool) -> None:
    torch.manual_seed(0)
    rank, features = 5, {"pivoted_input": 12, "pivoted_output": 20}.get(storage, 0)
    layer = FactoredLinear(12, [20], rank, storage, features - rank if start < 0 else start, bias)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    hidden = torch.randn(2, 7, 12)
    expected = nn.functional.linear(hidden, _dense_weight(layer), layer.bias)
    torch.testing.assert_close(layer(hidden), expected)
    weights = sum(p.numel() for name, p in layer.named_parameters() if name != "bias")
    assert weights == factored_params(rank, 20, 12, storage.partition("_")[0])


def test_unknown_storage_and_pivots_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="storage 'lora' must be pair, pivoted_input or pivoted_output"):
        FactoredLinear(8, [8], 2, "lora")
    with pytest.raises(ValueError, match="pivot_start 7 and rank 2 exceed 8 features"):
        FactoredLinear(8, [8], 2, "pivoted_input", 7)


class Attention(nn.Module):
    """Three linears that read one input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.q(hidden), self.k(hidden), self.v(hidden)], dim=-1)


LAYOUT = {"0.qkv": {"paths": ["q", "k", "v"], "in_features": 8, "part_features": [8, 4, 4], "rank": 3, "bias": True}}


def test_install_layout_puts_one_product_in_place_of_the_stack() -> None:
    model = Attention()
    install_layout_(model, LAYOUT)
    assert {name for name, _ in model.named_parameters()} == {"q.down.weight", "q.up.weight", "q.bias"}
    calls = []
    model.q.down.register_forward_hook(lambda *_: calls.append("down"))
    hidden = torch.randn(1, 5, 8)
    torch.testing.assert_close(model(hidden), nn.functional.linear(hidden, _dense_weight(model.q), model.q.bias))
    assert calls == ["down"]


def test_stack_parts_refuse_another_input_and_another_order() -> None:
    model = Attention()
    install_layout_(model, LAYOUT)
    hidden = torch.randn(1, 5, 8)
    with pytest.raises(RuntimeError, match="part 1 of a factored stack was called before part 0"):
        model.k(hidden)
    model.q(hidden)
    with pytest.raises(RuntimeError, match="or with another input; the architecture file"):
        model.k(hidden.clone())


def test_a_stack_keeps_nothing_of_a_forward_pass() -> None:
    model = Attention()
    install_layout_(model, LAYOUT)
    model(torch.randn(1, 5, 8))
    with pytest.raises(RuntimeError, match="part 2"):
        model.v(torch.randn(1, 5, 8))


def test_install_puts_any_leader_at_the_first_path() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    leader = FactoredLinear(4, [4], 2)
    install_(model, ["a"], leader)
    assert model["a"] is leader

"""Traces a model to an ONNX graph whose parameters are inputs, so that no weight passes through protobuf.

Dimension key: B batch, P past tokens, T new tokens, H key/value heads, D head width, V vocabulary.
"""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.flat import flat_forward
from sieve_edge.model.levels import SKIPPED

OPSET = 18
INPUTS = ("input_ids", "attention_mask", "position_ids")
_PREFIX = "model."


class _FlatModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._skipped = skipped_matrices(model)

    def forward(self, ids_BT: Tensor, mask: Tensor, positions_BT: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        for leader in self._skipped:
            # The size of its zeros is read off the tokens: off its own input, it would keep the whole block alive.
            zeros_BTO = torch.zeros(*ids_BT.shape, sum(leader.part_features))
            leader.multiply = lambda _, zeros_BTO=zeros_BTO: zeros_BTO
        try:
            logits, present = flat_forward(self.model, ids_BT, mask, positions_BT, past)
        finally:
            for leader in self._skipped:
                del leader.multiply
        return logits, *present


def trace(model: Any) -> onnx.ModelProto:
    """Trace a causal language model with a flat key/value cache.

    Args:
        model: transformers model in evaluation mode, float32, eager attention.

    Returns:
        Graph in the convention of optimum; each parameter is an input with its name in the model. Of a skipped block
        it has only the keys and values that the cache's shape asks for.
    """
    layers, example = _example(model)
    past = [f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in (*INPUTS, "logits")}
    axes["attention_mask"] = {0: "batch_size", 1: "total_sequence_length"}
    axes |= {name: {0: "batch_size", 2: "past_sequence_length"} for name in past}
    axes |= {name: {0: "batch_size", 2: "total_sequence_length"} for name in present}
    buffer: Any = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # The legacy exporter announces its age and each traced constant; parity is checked on the result instead.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            # The exporter afterwards puts this module's mode on every part: it must be evaluation.
            _FlatModel(model).eval(),
            example,
            buffer,
            input_names=[*INPUTS, *past],
            output_names=["logits", *present],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            # Otherwise parameters of equal value, such as two norms of ones, are merged under one name.
            keep_initializers_as_inputs=True,
            export_params=False,
            do_constant_folding=False,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    _strip_prefix_(proto.graph)
    _keep_inputs_(proto.graph, axes)
    return proto


def skipped_matrices(module: nn.Module) -> list[Any]:
    """List the matrices of skipped blocks.

    Args:
        module: Model, or a part of it.

    Returns:
        Factored linears of rank 0.
    """
    return [part for part in module.modules() if isinstance(part, FactoredLinear) and part.rank == SKIPPED]


def _example(model: Any) -> tuple[int, tuple[Tensor, ...]]:
    """Make inputs with every dynamic axis longer than one, and learn the cache's shape from the model itself."""
    batch, past_tokens, tokens = 2, 3, 4
    ids = torch.arange(batch * (past_tokens + tokens)).view(batch, -1) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    positions = torch.arange(past_tokens + tokens).expand(batch, -1).contiguous()
    with torch.no_grad():
        earlier_ids, earlier_mask, earlier_positions = (tensor[:, :past_tokens] for tensor in (ids, mask, positions))
        _, past = flat_forward(model, earlier_ids, earlier_mask, earlier_positions, ())
    return len(past) // 2, (ids[:, past_tokens:], mask, positions[:, past_tokens:], *past)


def _strip_prefix_(graph: onnx.GraphProto) -> None:
    reserved = {value.name for value in graph.output} | {name for node in graph.node for name in node.output}
    renamed = {}
    for value in graph.input:
        if value.name.startswith(_PREFIX):
            renamed[value.name] = value.name.removeprefix(_PREFIX)
            value.name = renamed[value.name]
    if reserved & set(renamed.values()):
        raise AssertionError(f"names of parameters and values collide: {sorted(reserved & set(renamed.values()))}")
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _keep_inputs_(graph: onnx.GraphProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Declare inputs that nothing reads: without any attention the exporter drops the mask, which runtimes pass."""
    declared = {value.name for value in graph.input}
    for index, name in enumerate(INPUTS):
        if name not in declared:
            shape = list(axes[name].values())
            graph.input.insert(index, helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape))

"""Writes a model's graph and weights: trace, simplify, edit, write, account."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from sieve_edge.export.graph import fold_transposes_, keep_last_logits_
from sieve_edge.export.quantize_onnx import CODES, SCALES, read_blocks_, read_halves_
from sieve_edge.export.simplify import simplify_shapes_
from sieve_edge.export.trace import skipped_matrices, trace
from sieve_edge.export.weights import TRANSPOSED, account, parameters_of, write_weights_
from sieve_edge.model.matrices import decoder_layers


@dataclass(frozen=True)
class Stored:
    """How a graph's weights are stored.

    Attributes:
        bits: Of one number: 4, 8 or 16.
        weights: Names of the parameters that are stored so; the others stay float32.
        tensors: With 4 or 8 bits, ``W.codes`` (O, B, bytes) and ``W.scales`` (O, B) of each.
    """

    bits: int
    weights: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def write_graph(model: Any, folder: Path, stored: Stored | None = None) -> int:
    """Write ``model.onnx`` and ``model.onnx.data``.

    Args:
        model: transformers model in evaluation mode, float32 on the CPU, eager attention.
        folder: Existing folder.
        stored: How weights are stored; None for float32.

    Returns:
        Nodes of the graph.
    """
    parameters = parameters_of(model)
    traced = set(parameters)
    head = model.get_output_embeddings().weight
    head_name = next(name for name, parameter in model.named_parameters() if parameter is head)
    proto = trace(model)
    simplify_shapes_(proto)
    keep_last_logits_(proto.graph, head_name)
    if stored is not None and stored.bits < 16:
        shapes = {name: parameters.pop(name).shape for name in stored.weights}
        read_blocks_(proto, shapes, stored.bits)
        parameters |= stored.tensors
    transposed = fold_transposes_(proto.graph, list(parameters))
    if stored is not None and stored.bits == 16:
        parameters |= {name: parameters[name].half() for name in stored.weights}
        read_halves_(proto.graph, stored.weights)
    write_weights_(proto, traced, parameters, transposed, folder)
    unread = _unread(model, proto.graph)
    account(folder, {name: tensor for name, tensor in parameters.items() if _weight_of(name) not in unread})
    return len(proto.graph.node)


def _unread(model: Any, graph: onnx.GraphProto) -> set[str]:
    """Name the parameters that nothing reads since their block is skipped, such as its norm's."""
    layers = [layer for layer in decoder_layers(model) if skipped_matrices(layer)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    stored = {_weight_of(value.name) for value in graph.initializer}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside and name not in stored}


def _weight_of(name: str) -> str:
    for suffix in (TRANSPOSED, CODES, SCALES):
        name = name.removesuffix(suffix)
    return name

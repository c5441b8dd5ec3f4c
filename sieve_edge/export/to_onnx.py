"""Writes a model's graph and weights: trace, simplify, edit, write, account."""

from pathlib import Path
from typing import Any

import onnx

from sieve_edge.export.graph import fold_transposes_, keep_last_logits_
from sieve_edge.export.simplify import simplify_shapes_
from sieve_edge.export.trace import skipped_matrices, trace
from sieve_edge.export.weights import TRANSPOSED, account, parameters_of, write_weights_
from sieve_edge.model.matrices import decoder_layers


def write_graph(model: Any, folder: Path) -> int:
    """Write ``model.onnx`` and ``model.onnx.data``.

    Args:
        model: transformers model in evaluation mode, float32 on the CPU, eager attention.
        folder: Existing folder.

    Returns:
        Nodes of the graph.
    """
    parameters = parameters_of(model)
    head = model.get_output_embeddings().weight
    head_name = next(name for name, parameter in model.named_parameters() if parameter is head)
    proto = trace(model)
    simplify_shapes_(proto)
    keep_last_logits_(proto.graph, head_name)
    transposed = fold_transposes_(proto.graph, list(parameters))
    write_weights_(proto, parameters, transposed, folder)
    unread = _unread(model, proto.graph)
    account(folder, {name: parameter for name, parameter in parameters.items() if name not in unread})
    return len(proto.graph.node)


def _unread(model: Any, graph: onnx.GraphProto) -> set[str]:
    """Name the parameters that nothing reads since their block is skipped, such as its norm's."""
    layers = [layer for layer in decoder_layers(model) if skipped_matrices(layer)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    stored = {value.name.removesuffix(TRANSPOSED) for value in graph.initializer}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside and name not in stored}

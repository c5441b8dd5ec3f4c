"""Writes a model's graph and weights: trace, simplify, edit, write, account."""

from pathlib import Path
from typing import Any

from sieve_edge.export.graph import fold_transposes_, keep_last_logits_
from sieve_edge.export.simplify import simplify_shapes_
from sieve_edge.export.trace import trace
from sieve_edge.export.weights import account, parameters_of, write_weights_


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
    account(folder, parameters)
    return len(proto.graph.node)

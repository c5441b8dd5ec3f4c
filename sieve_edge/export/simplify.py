"""Replaces shapes that a graph computes at run time by constants, wherever shape inference knows them.

A traced graph asks for the batch and the sequence length again in every layer; on a small model those hundreds of
tiny operators are a visible part of a decode step.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

Dims = Sequence[int | str]


def simplify_shapes_(proto: onnx.ModelProto) -> None:
    """Give Reshape and Expand constant shapes, fold known dimensions, and drop what is then unused.

    Args:
        proto: Traced model; changed in place.
    """
    _unwrap_expands_(proto.graph)
    _fold_integers_(proto.graph)
    before = len(proto.graph.node) + 1
    # Each round makes more shapes known to the next one.
    while len(proto.graph.node) < before:
        before = len(proto.graph.node)
        _simplify_once_(proto)


def _simplify_once_(proto: onnx.ModelProto) -> None:
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    dims = {value.name: _dims(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    constants = _constants(proto.graph)
    shape_of = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Shape"}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type == "Gather" and node.input[0] in shape_of:
            known = _known_dimension(dims.get(shape_of[node.input[0]]), constants.get(node.input[1]))
            nodes.append(node if known is None else _constant(node.output[0], known))
            continue
        find = {"Reshape": _reshape_values, "Expand": _expand_values}.get(node.op_type)
        values = find(dims.get(node.input[0]), dims.get(node.output[0])) if find else None
        if values is not None and node.input[1] not in constants:
            node.input[1] = node.output[0] + ".constant_shape"
            nodes.append(_constant(node.input[1], np.asarray(values, dtype=np.int64)))
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(_used(nodes, [value.name for value in proto.graph.output]))
    _fold_integers_(proto.graph)


def _fold_integers_(graph: onnx.GraphProto) -> None:
    """Fold the arithmetic of slice bounds (half of a known width), which inference does not follow."""
    constants = dict(_constants(graph))
    for node in graph.node:
        values = [constants.get(name) for name in node.input]
        known = [value for value in values if value is not None and value.dtype == np.int64]
        result = _integer_result(node, known) if known and len(known) == len(values) else None
        if result is not None:
            constants[node.output[0]] = result
            node.CopyFrom(_constant(node.output[0], result))


def _integer_result(node: onnx.NodeProto, values: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.INT64:
        return values[0]
    if node.op_type == "Unsqueeze":
        return np.expand_dims(values[0], tuple(values[1].reshape(-1).tolist()))
    # ONNX divides towards zero and numpy downwards, so only where both are the same.
    if node.op_type == "Div" and values[0].min() >= 0 and values[1].min() > 0:
        return np.asarray(values[0] // values[1])
    return None


def _unwrap_expands_(graph: onnx.GraphProto) -> None:
    """Take out the exporter's run-time test for sizes of -1 in an expand: it hides the shape from inference."""
    made_by = {name: node for node in graph.node for name in node.output}
    constants = _constants(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        choice = made_by.get(node.input[1]) if node.op_type == "Expand" else None
        shape = made_by.get(choice.input[2]) if choice and choice.op_type == "Where" else None
        sizes = made_by.get(shape.input[0]) if shape and shape.op_type == "Reshape" else None
        if sizes and sizes.op_type == "Concat":
            one, joined = node.output[0] + ".one", node.output[0] + ".sizes"
            parts = [one if _keeps_size(made_by, constants, name) else name for name in sizes.input]
            nodes.append(_constant(one, np.ones(1, dtype=np.int64)))
            nodes.append(helper.make_node("Concat", parts, [joined], name=joined + ".Concat", axis=0))
            node.input[1] = joined
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _keeps_size(made_by: Mapping[str, onnx.NodeProto], constants: Mapping[str, NDArray[np.int64]], name: str) -> bool:
    """Say whether a part of an expand's shape is PyTorch's -1; ONNX writes 1 for it."""
    maker = made_by.get(name)
    value = constants.get(maker.input[0] if maker and maker.op_type == "Unsqueeze" else name)
    return value is not None and bool((value == -1).all())


def _reshape_values(source: Dims | None, result: Dims | None) -> list[int] | None:
    """Write a shape with 0 for a dimension kept from the input, and -1 for the only one that is neither."""
    if source is None or result is None:
        return None
    values = []
    for index, size in enumerate(result):
        if isinstance(size, int):
            values.append(size)
        else:
            values.append(0 if size and index < len(source) and source[index] == size else -1)
    # A dimension of zero would read as "keep".
    fits = values.count(-1) <= 1 and not any(isinstance(size, int) and size == 0 for size in result)
    return values if fits else None


def _expand_values(source: Dims | None, result: Dims | None) -> list[int] | None:
    """Write a shape with 1 for every dimension that stays as it is."""
    if source is None or result is None or len(source) != len(result):
        return None
    values = []
    for before, after in zip(source, result, strict=True):
        if isinstance(after, int):
            values.append(after)
        elif after and before == after:
            values.append(1)
        else:
            return None
    return values


def _known_dimension(dims: Dims | None, index: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    if dims is None or index is None or index.size != 1:
        return None
    size = dims[int(index.reshape(-1)[0])]
    return np.full(index.shape, size, dtype=np.int64) if isinstance(size, int) else None


def _used(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _constants(graph: onnx.GraphProto) -> Mapping[str, NDArray[np.int64]]:
    return {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }


def _constant(name: str, value: NDArray[np.int64]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=name + ".Constant", value=numpy_helper.from_array(value))


def _dims(value: onnx.ValueInfoProto) -> Dims | None:
    """List the dimensions: a number, a symbol, or an empty symbol for one that is not known."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]

"""Edits a traced graph so that it reads quantized or half-precision weights.

Dimension key: O out_features, I in_features, B blocks of a row.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sieve_edge.config import BLOCK
from sieve_edge.device.matrix_graphs import DOMAIN, block_attributes
from sieve_edge.errors import ArtifactError

CODES, SCALES = ".codes", ".scales"


def read_blocks_(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], bits: int) -> None:
    """Let linears and embeddings read blocks of integers, ``W.codes`` and ``W.scales``, in place of a weight W.

    Linears quantize their inputs to 8 bits too, which is what makes them fast on a CPU. An embedding that is tied to
    the head reads the same codes.

    Args:
        proto: Model as traced, weights being inputs; changed in place.
        shapes: Weights that are stored in blocks -> (O, I).
        bits: 4 or 8.

    Raises:
        ArtifactError: If a weight is read by something else too.
    """
    graph = proto.graph
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for weight, (outputs, features) in shapes.items():
        for node in users[weight]:
            multiplies = users[node.output[0]]
            if node.op_type == "Transpose" and all(user.op_type == "MatMul" for user in multiplies):
                replaced[node.name] = []
                replaced |= {user.name: [_linear(user, weight, outputs, features, bits)] for user in multiplies}
            elif node.op_type == "Gather" and node.input[0] == weight:
                graph.initializer.append(_flat_shape(weight, outputs))
                replaced[node.name] = _embedding(node, weight, bits)
            else:
                raise ArtifactError(f"export: weight {weight} is read by {node.op_type}, which takes no blocks")
    nodes = [new for node in graph.node for new in replaced.get(node.name, [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(entry.domain == DOMAIN for entry in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=1)


def read_halves_(graph: onnx.GraphProto, weights: Sequence[str]) -> None:
    """Let every reader of some weights read them through a cast from float16; the arithmetic stays float32.

    Args:
        graph: Graph; changed in place.
        weights: Names of the weights.
    """
    wide = {name: f"{name}.float32" for name in weights}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = wide.get(name, name)
    used = {name for node in graph.node for name in node.input}
    casts = [
        helper.make_node("Cast", [name], [output], name=f"{output}.Cast", to=onnx.TensorProto.FLOAT)
        for name, output in wide.items()
        if output in used
    ]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _linear(multiply: onnx.NodeProto, weight: str, outputs: int, features: int, bits: int) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits",
        [multiply.input[0], weight + CODES, weight + SCALES],
        list(multiply.output),
        name=multiply.name,
        **block_attributes(features, outputs, bits),
    )


def _embedding(gather: onnx.NodeProto, weight: str, bits: int) -> list[onnx.NodeProto]:
    rows = f"{weight}.rows"
    return [
        helper.make_node("Reshape", [weight + CODES, f"{rows}.shape"], [rows], name=f"{rows}.Reshape"),
        helper.make_node(
            "GatherBlockQuantized",
            [rows, gather.input[1], weight + SCALES],
            list(gather.output),
            name=gather.name,
            domain=DOMAIN,
            bits=bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        ),
    ]


def _flat_shape(weight: str, outputs: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray([outputs, -1], dtype=np.int64), f"{weight}.rows.shape")

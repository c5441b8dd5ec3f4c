"""Edits a traced graph: weights in the order that runtimes multiply, and logits of the last positions only.

Dimension key: B batch, T new tokens, K positions whose logits are wanted, I in_features, O out_features.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sieve_edge.errors import ArtifactError

KEEP = "logits_to_keep"
_INT64_MAX = np.iinfo(np.int64).max


def keep_last_logits_(graph: onnx.GraphProto, head: str) -> None:
    """Let the runtime ask for the logits of the last positions only, through an optional input.

    The input is an initializer that may be overridden, so callers that do not know it get all logits.

    Args:
        graph: Graph as traced; changed in place.
        head: Name of the output embedding's weight.

    Raises:
        ArtifactError: If the head is not one plain linear.
    """
    users = _consumers(graph)
    multiply = _linear_of(users, head)
    if multiply is None:
        raise ArtifactError(f"export: the output embedding '{head}' is not one plain linear of the traced graph")
    constants = {
        KEEP: [_INT64_MAX],
        f"{KEEP}.end": [_INT64_MAX],
        f"{KEEP}.axis": [1],
    }
    graph.initializer.extend(_integers(name, values) for name, values in constants.items())
    graph.input.append(helper.make_tensor_value_info(KEEP, onnx.TensorProto.INT64, [1]))
    added = [
        helper.make_node("Neg", [KEEP], [f"{KEEP}.start"], name=f"{KEEP}.Neg"),
        helper.make_node(
            "Slice",
            [multiply.input[0], f"{KEEP}.start", f"{KEEP}.end", f"{KEEP}.axis"],
            [f"{KEEP}.hidden"],
            name=f"{KEEP}.Slice",
        ),
    ]
    multiply.input[0] = f"{KEEP}.hidden"
    _replace_(graph, {multiply.name: [*added, multiply]})


def fold_transposes_(graph: onnx.GraphProto, weights: Sequence[str]) -> set[str]:
    """Take out the transposes that the exporter puts before every linear's weight.

    A weight that only linears read shall be stored transposed. One that has other readers too (embedding and
    output embedding tied) is multiplied by a Gemm, which reads it as it is, so that it is stored once.

    Args:
        graph: Graph as traced; changed in place.
        weights: Names of the model's parameters.

    Returns:
        Names of the weights that must be stored transposed, (I, O).
    """
    users = _consumers(graph)
    transposed = set()
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for weight in weights:
        transposes = [node for node in users[weight] if node.op_type == "Transpose"]
        multiplies = [user for node in transposes for user in users[node.output[0]]]
        if not transposes or any(not _multiplies_by(node, transposes) for node in multiplies):
            continue
        replaced |= {node.name: [] for node in transposes}
        if len(transposes) == len(users[weight]):
            transposed.add(weight)
            for node in multiplies:
                node.input[1] = weight
        else:
            replaced |= {node.name: _as_gemm(node, weight) for node in multiplies}
    _replace_(graph, replaced)
    return transposed


def _as_gemm(multiply: onnx.NodeProto, weight_OI: str) -> list[onnx.NodeProto]:
    hidden, output, base = multiply.input[0], multiply.output[0], multiply.output[0] + ".gemm"
    return [
        helper.make_node("Flatten", [hidden], [f"{base}.rows"], name=f"{base}.Flatten", axis=-1),
        helper.make_node("Gemm", [f"{base}.rows", weight_OI], [f"{base}.product"], name=f"{base}.Gemm", transB=1),
        helper.make_node("Shape", [hidden], [f"{base}.leading"], name=f"{base}.Shape", start=0, end=-1),
        helper.make_node("Constant", [], [f"{base}.rest"], name=f"{base}.Constant", value_ints=[-1]),
        helper.make_node(
            "Concat", [f"{base}.leading", f"{base}.rest"], [f"{base}.shape"], name=f"{base}.Concat", axis=0
        ),
        helper.make_node("Reshape", [f"{base}.product", f"{base}.shape"], [output], name=f"{base}.Reshape"),
    ]


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    return users


def _linear_of(users: dict[str, list[onnx.NodeProto]], weight: str) -> onnx.NodeProto | None:
    transposes = [node for node in users[weight] if node.op_type == "Transpose"]
    multiplies = [user for node in transposes for user in users[node.output[0]]]
    plain = len(multiplies) == 1 and _multiplies_by(multiplies[0], transposes)
    return multiplies[0] if plain else None


def _multiplies_by(node: onnx.NodeProto, transposes: Sequence[onnx.NodeProto]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in {transpose.output[0] for transpose in transposes}


def _replace_(graph: onnx.GraphProto, replaced: dict[str, list[onnx.NodeProto]]) -> None:
    nodes = [new for node in graph.node for new in replaced.get(node.name, [node])]
    del graph.node[:]
    graph.node.extend(nodes)


def _integers(name: str, values: Sequence[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)

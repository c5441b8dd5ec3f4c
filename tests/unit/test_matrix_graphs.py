"""The graph that times a matrix computes what the exported graph computes for it."""

import io
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from sieve_edge.config import BITS, BLOCK
from sieve_edge.device.matrix_graphs import MatrixGraph
from sieve_edge.device.ort import OrtGraph
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.levels import factored_params

IN, RANK = 24, 8
NUMBERS = np.random.default_rng(0).standard_normal(2**16, dtype=np.float32)
COMPUTES = ("MatMul", "Add", "Slice", "Concat", "Split")


class Stack(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, hidden):
        output = self.linear.multiply(hidden)
        return output.split(self.linear.part_features, dim=-1) if len(self.linear.part_features) > 1 else output


def exported(parts, storage):
    linear = FactoredLinear(IN, parts, RANK, storage, pivot_start=0 if storage == "pair" else 3)
    buffer = io.BytesIO()
    axes = {"hidden": {0: "batch", 1: "tokens"}}
    settings = {"input_names": ["hidden"], "dynamic_axes": axes, "opset_version": 18, "dynamo": False}
    torch.onnx.export(Stack(linear).eval(), (torch.zeros(2, 3, IN),), buffer, **settings)
    return onnx.load_from_string(buffer.getvalue()).graph


def timed(parts, rank, storage, copies=1):
    graph = MatrixGraph(NUMBERS)
    for _ in range(copies):
        if rank is None:
            graph.add_dense(parts, IN)
        else:
            graph.add_factored(parts, IN, rank, storage)
    return onnx.load_from_string(graph.serialize()).graph


def operators(graph):
    counts = Counter(node.op_type for node in graph.node)
    return {name: counts[name] for name in COMPUTES}


def weights(graph):
    arrays = [numpy_helper.to_array(item) for item in graph.initializer]
    return [array for array in arrays if array.ndim == 2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("parts", [(32,), (16, 8, 8)])
@pytest.mark.parametrize("storage", ["pair", "pivoted_input", "pivoted_output"])
def test_a_factored_matrix_has_the_operators_and_weights_of_the_export(parts, storage):
    theirs, ours = exported(parts, storage), timed(parts, RANK, storage)
    collects = Counter(Concat=1)  # our output, of what was computed
    assert operators(ours) == {name: count + collects[name] for name, count in operators(theirs).items()}
    params = factored_params(RANK, sum(parts), IN, storage.partition("_")[0])
    assert sum(array.size for array in weights(ours)) == sum(array.size for array in weights(theirs)) == params


def test_a_dense_matrix_is_one_multiplication_for_each_part():
    assert operators(timed((16, 8, 8), None, "dense"))["MatMul"] == 3


def test_no_two_weights_are_alike():
    found = weights(timed((32,), RANK, "pair", copies=5))
    assert len({array.tobytes() for array in found}) == len(found) == 10


@pytest.mark.parametrize(
    ("rank", "storage"), [(None, "dense"), (8, "pair"), (23, "pivoted_input"), (8, "pivoted_output")]
)
def test_graphs_run_at_any_length(rank, storage):
    graph = MatrixGraph(NUMBERS)
    for _ in range(3):
        if rank is None:
            graph.add_dense((16, 8), IN)
        else:
            graph.add_factored((16, 16), IN, rank, storage)
    loaded = OrtGraph(graph.serialize(), threads=1)
    for tokens in (7, 1):
        loaded.bind(NUMBERS[: tokens * IN].reshape(1, tokens, IN))()


@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize(
    ("rank", "storage"), [(None, "dense"), (8, "pair"), (23, "pivoted_input"), (8, "pivoted_output")]
)
def test_weights_in_blocks_are_multiplied_as_the_export_does(quantization, rank, storage):
    graph = MatrixGraph(NUMBERS, quantization)
    if rank is None:
        graph.add_dense((16, 8), IN)
    else:
        graph.add_factored((16, 16), IN, rank, storage)
    serialized = graph.serialize()
    nodes = [node for node in onnx.load_from_string(serialized).graph.node if node.op_type.startswith("MatMul")]
    assert {node.op_type for node in nodes} == {"MatMulNBits"}
    assert len(nodes) == 2
    for node in nodes:
        facts = {item.name: item.i for item in node.attribute}
        assert (facts["bits"], facts["block_size"]) == (BITS[quantization], BLOCK)
    loaded = OrtGraph(serialized, threads=1)
    for tokens in (7, 1):
        loaded.bind(NUMBERS[: tokens * IN].reshape(1, tokens, IN))()


def test_half_precision_is_cast_where_it_is_used():
    graph = MatrixGraph(NUMBERS, "F16")
    graph.add_factored((16,), IN, RANK, "pair")
    model = onnx.load_from_string(graph.serialize())
    assert {numpy_helper.to_array(item).dtype for item in model.graph.initializer} == {np.dtype(np.float16)}
    OrtGraph(model.SerializeToString(), threads=1).bind(NUMBERS[: 3 * IN].reshape(1, 3, IN))()

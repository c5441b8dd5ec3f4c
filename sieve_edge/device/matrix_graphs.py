"""Writes graphs that time one matrix: several copies of what the export writes for it, each with its own weights.

Dimension key: B batch, T tokens, I in_features, O out_features of the whole stack, R rank.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sieve_edge.config import BITS, BLOCK
from sieve_edge.protocols import Float32

DOMAIN = "com.microsoft"
_INT8_ARITHMETIC = 4
_OPSET = 18
_IR_VERSION = 10
_INT64_MAX = np.iinfo(np.int64).max


def block_attributes(in_features: int, out_features: int, bits: int) -> dict[str, Any]:
    """Say how ONNX Runtime multiplies by weights in blocks.

    Args:
        in_features: I.
        out_features: O.
        bits: Of a code.

    Returns:
        Domain and attributes of the node ``MatMulNBits``.
    """
    sizes = {"K": in_features, "N": out_features, "bits": bits, "block_size": BLOCK}
    return {"domain": DOMAIN, **sizes, "accuracy_level": _INT8_ARITHMETIC}


class MatrixGraph:
    """A graph under construction; its inputs are (B, T, I), and its output says only that everything was computed."""

    def __init__(self, numbers: Float32, quantization: str = "F32") -> None:
        """Start empty.

        Args:
            numbers: Random numbers that weights are made of, as many as the largest weight has and
                one more for each weight.
            quantization: Type of the stored weights.
        """
        self._numbers = numbers
        self._quantization = quantization
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._shapes: list[str] = []

    def add_nothing(self, features: int) -> None:
        """Add an input that is not computed with; without it a graph of no matrices would be empty.

        Args:
            features: Its width.
        """
        self._use(self._input(features))

    def add_dense(self, part_features: Sequence[int], in_features: int) -> None:
        """Add a copy of a dense matrix: one multiplication for each part.

        Args:
            part_features: Output features of each stacked part.
            in_features: I.
        """
        hidden = self._input(in_features)
        for features in part_features:
            self._use(self._multiply(hidden, in_features, features))

    def add_factored(self, part_features: Sequence[int], in_features: int, rank: int, storage: str) -> None:
        """Add a copy of a factored matrix, as ``FactoredLinear`` computes it, its pivots in the middle.

        Args:
            part_features: Output features of each stacked part.
            in_features: I.
            rank: R.
            storage: ``"pair"``, ``"pivoted_input"`` or ``"pivoted_output"``.
        """
        hidden, out_features = self._input(in_features), sum(part_features)
        if storage == "pivoted_input":
            start = (in_features - rank) // 2
            before, pivots, after = self._cut(hidden, (0, start, start + rank, in_features))
            rest = self._join([before, after])
            projected = self._node("Add", [pivots, self._multiply(rest, in_features - rank, rank)])
        else:
            projected = self._multiply(hidden, in_features, rank)
        if storage == "pivoted_output":
            others = out_features - rank
            before, after = self._cut(self._multiply(projected, rank, others), (0, others // 2, others))
            output = self._join([before, projected, after])
        else:
            output = self._multiply(projected, rank, out_features)
        if len(part_features) == 1:
            self._use(output)
            return
        names = [f"{output}.part{index}" for index in range(len(part_features))]
        sizes = self._store(np.asarray(part_features, dtype=np.int64))
        self._nodes.append(helper.make_node("Split", [output, sizes], names, axis=-1))
        for name in names:
            self._use(name)

    def serialize(self) -> bytes:
        """Finish the graph.

        Returns:
            The model, weights included.
        """
        output = helper.make_tensor_value_info("shapes", TensorProto.INT64, [3 * len(self._shapes)])
        self._nodes.append(helper.make_node("Concat", self._shapes, ["shapes"], axis=0))
        graph = helper.make_graph(self._nodes, "matrix", self._inputs, [output], self._stored)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        content: bytes = model.SerializeToString()
        return content

    def _input(self, features: int) -> str:
        # Each copy has an input of its own: what copies do to a common one, a runtime may do once for all.
        name = f"hidden{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", features]))
        return name

    def _use(self, name: str) -> None:
        """Make the output depend on a value, at a cost that is small and the same for every matrix."""
        self._shapes.append(self._node("Shape", [name]))

    def _multiply(self, hidden: str, in_features: int, out_features: int) -> str:
        # No two weights alike: a runtime may keep equal ones once, and then they come from the caches.
        start = len(self._stored)
        numbers = self._numbers[start : start + in_features * out_features]
        if self._quantization in BITS:
            return self._multiply_blocks(hidden, in_features, out_features, numbers)
        weight_IO = numbers.reshape(in_features, out_features)
        if self._quantization == "F16":
            narrow = self._store(weight_IO.astype(np.float16))
            return self._node("MatMul", [hidden, self._node("Cast", [narrow], to=TensorProto.FLOAT)])
        return self._node("MatMul", [hidden, self._store(weight_IO)])

    def _multiply_blocks(self, hidden: str, in_features: int, out_features: int, numbers: Float32) -> str:
        """Multiply by codes and scales, as the export does; what the numbers are does not change the time."""
        bits, blocks = BITS[self._quantization], -(-in_features // BLOCK)
        codes = np.resize(numbers.view(np.uint8), (out_features, blocks, BLOCK * bits // 8))
        scales = np.resize(np.abs(numbers), (out_features * blocks,))
        inputs = [hidden, self._store(codes), self._store(scales)]
        return self._node("MatMulNBits", inputs, **block_attributes(in_features, out_features, bits))

    def _cut(self, value: str, bounds: Sequence[int]) -> Iterator[str]:
        axis = self._store(np.asarray([-1], dtype=np.int64))
        for start, stop in itertools.pairwise(bounds):
            end = _INT64_MAX if stop == bounds[-1] else stop
            limits = [self._store(np.asarray([bound], dtype=np.int64)) for bound in (start, end)]
            yield self._node("Slice", [value, *limits, axis])

    def _join(self, values: Sequence[str]) -> str:
        name = f"joined{len(self._nodes)}"
        self._nodes.append(helper.make_node("Concat", values, [name], axis=-1))
        return name

    def _node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"value{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _store(self, array: np.ndarray) -> str:
        name = f"stored{len(self._stored)}"
        self._stored.append(numpy_helper.from_array(array, name))
        return name

"""Graphs of llama.cpp's own operators that time one matrix, through the libraries that llama-cpp-python ships."""

import ctypes
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from sieve_edge.device.llama import runtime
from sieve_edge.device.times import TimedMatrix
from sieve_edge.errors import ArtifactError
from sieve_edge.protocols import Float32
from sieve_edge.weight_types import fitting, main_type

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
"""Type of a stored weight -> ggml's number of it."""

_MIXED_UP = 2**20
"""Bytes for ggml's own records of a graph, and as many again for each copy of a matrix."""

_WORK = 2**24


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GgmlGraph:
    """Several copies of one matrix as llama.cpp computes it, on the processor."""

    def __init__(self, matrix: TimedMatrix, copies: int, quantization: str, threads: int, numbers: Float32) -> None:
        """Make the weights.

        Args:
            matrix: Dense, of any width, or a plain pair.
            copies: How many; each has weights of its own. 0 for a graph that computes nothing to speak of.
            quantization: Of the target; of a mixture the type that most of its tensors have is timed.
            threads: Threads of one operator.
            numbers: Random numbers, at least as many as the largest factor has.
        """
        self._matrix, self._copies, self._threads = matrix, copies, threads
        self._kind, self._numbers = main_type(quantization), numbers
        self.last: Any = None

    def bind(self, tokens: int) -> Callable[[], None]:
        """Make ready to compute.

        Args:
            tokens: Tokens of the input.

        Returns:
            Function that computes every copy once and waits until it is done.

        Raises:
            ArtifactError: If there is not enough memory.
        """
        base, matrix = self._base, self._matrix
        shapes = self._shapes()
        weights = sum(base.ggml_row_size(self._type(width), width) * rows for width, rows in shapes)
        weights *= max(self._copies, 1)
        inputs = shapes[0][0]
        widest = max(inputs + matrix.rank_or(0) + sum(matrix.part_features), 64)
        values = 4 * tokens * widest * (max(self._copies, 1) + 1)
        room = int(weights + values + _WORK + _MIXED_UP * (self._copies + 2) + 64 * tokens * widest)
        context = base.ggml_init(_InitParams(room, None, False))
        if not context:
            raise ArtifactError(f"ggml: no {room / 2**20:.0f} MiB for the graph of {matrix}")
        graph = base.ggml_new_graph_custom(context, 4096, False)
        hidden = base.ggml_new_tensor_2d(context, TYPES["F32"], inputs, tokens)
        self._fill(hidden, inputs, tokens, TYPES["F32"])
        if not self._copies:
            small = base.ggml_new_tensor_2d(context, TYPES["F32"], inputs, 1)
            base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, small, hidden))
        for _ in range(self._copies):
            self._add_copy(context, graph, hidden, shapes)
        return partial(self._run, context, graph)

    def _type(self, width: int) -> int:
        return TYPES[fitting(self._kind, width)]

    def _shapes(self) -> list[tuple[int, int]]:
        """``(row length, rows)`` of every weight of a copy."""
        matrix, whole = self._matrix, self._matrix.multiplied()
        if whole is not None:
            return [(whole[1], rows) for rows in whole[0]]
        rank = matrix.rank_or(0)
        return [(matrix.in_features, rank), *((rank, rows) for rows in matrix.part_features)]

    def _add_copy(self, context: Any, graph: Any, hidden: Any, shapes: list[tuple[int, int]]) -> None:
        base = self._base
        made = []
        for width, rows in shapes:
            weight = base.ggml_new_tensor_2d(context, self._type(width), width, rows)
            self._fill(weight, width, rows, self._type(width))
            made.append(weight)
        if self._matrix.multiplied() is None:
            hidden = base.ggml_mul_mat(context, made.pop(0), hidden)
        for weight in made:
            self.last = base.ggml_mul_mat(context, weight, hidden)
            base.ggml_build_forward_expand(graph, self.last)

    def _fill(self, tensor: Any, width: int, rows: int, kind: int) -> None:
        data, source = self._base.ggml_get_data(tensor), np.ascontiguousarray(self._numbers[: width * rows])
        if kind == TYPES["F32"]:
            ctypes.memmove(data, source.ctypes.data, source.nbytes)
        else:
            self._base.ggml_quantize_chunk(kind, source.ctypes.data, data, 0, rows, width, None)

    def _run(self, context: Any, graph: Any) -> None:
        code = self._cpu.ggml_graph_compute_with_ctx(context, graph, self._threads)
        if code != 0:
            raise ArtifactError(f"ggml: computing {self._matrix} failed with {code}")

    @cached_property
    def _base(self) -> Any:
        library = _library("ggml-base")
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        kinds: dict[str, tuple[Any, list[Any]]] = {
            "ggml_init": (pointer, [_InitParams]),
            "ggml_new_graph_custom": (pointer, [pointer, size, ctypes.c_bool]),
            "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
            "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
            "ggml_build_forward_expand": (None, [pointer, pointer]),
            "ggml_get_data": (pointer, [pointer]),
            "ggml_row_size": (size, [ctypes.c_int, number]),
            "ggml_quantize_chunk": (size, [ctypes.c_int, pointer, pointer, number, number, number, pointer]),
        }
        return _typed(library, kinds)

    @cached_property
    def _cpu(self) -> Any:
        pointer = ctypes.c_void_p
        library = _typed(
            _library("ggml-cpu"),
            {
                "ggml_cpu_init": (None, []),
                "ggml_graph_compute_with_ctx": (ctypes.c_int, [pointer, pointer, ctypes.c_int]),
            },
        )
        library.ggml_cpu_init()
        return library


def _library(name: str) -> Any:
    folder = Path(runtime().__file__).parent / "lib"
    found = sorted(folder.glob(f"lib{name}.*"))
    if not found:
        raise ArtifactError(f"{folder}: no lib{name}; time tables need a llama-cpp-python with libraries of its own")
    return ctypes.CDLL(str(found[0]))


def _typed(library: Any, kinds: dict[str, tuple[Any, list[Any]]]) -> Any:
    for name, (result, arguments) in kinds.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library

"""Plain pairs against pivoted storage in llama.cpp: ``python -m benchmarks.llama_storage``.

A model's matrices, one after the other as one graph of ggml's CPU backend, which is what llama.cpp computes with. Both
storages have the same ranks, so they are the same function at the same accuracy; pivoted stores less, and pays with the
operations that pick the pivots out of the input, or put them back into the output. A pivoted input's rest and a pivoted
output are put together by ``ggml_concat``, since pivots stand in the middle of a matrix. Ratios are pair over pivoted,
paired by repeat, with 95 % intervals.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import finish, load_demo, options
from sieve_edge.artifacts import MatrixSpec
from sieve_edge.device.llama import runtime
from sieve_edge.device.timing import median_interval
from sieve_edge.model.levels import Ranks, ranks_at
from sieve_edge.model.statistics import narrow_side

TYPES = {"F32": 0, "Q8_0": 8, "Q4_0": 2}
PROMPT_TOKENS = 128
_NODES = 4096
_RANK_MULTIPLE = 32


class _Memory(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Plan(ctypes.Structure):
    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("threads", ctypes.c_int),
        ("pool", ctypes.c_void_p),
        ("abort", ctypes.c_void_p),
        ("abort_data", ctypes.c_void_p),
        ("reference", ctypes.c_bool),
    )


class _Ggml:
    """The few functions of ggml that a graph of matrices needs."""

    def __init__(self) -> None:
        folder = Path(runtime().__file__).parent / "lib"
        base, self._cpu = (ctypes.CDLL(str(folder / f"libggml-{part}.so")) for part in ("base", "cpu"))
        self._cpu.ggml_cpu_init()
        pointer, integer, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
        self.init = _function(base.ggml_init, pointer, _Memory)
        self.free = _function(base.ggml_free, None, pointer)
        self.tensor = _function(base.ggml_new_tensor_2d, pointer, pointer, ctypes.c_int, integer, integer)
        self.data = _function(base.ggml_get_data, pointer, pointer)
        self.multiply = _function(base.ggml_mul_mat, pointer, pointer, pointer, pointer)
        self.add = _function(base.ggml_add, pointer, pointer, pointer, pointer)
        self.concat = _function(base.ggml_concat, pointer, pointer, pointer, pointer, ctypes.c_int)
        self.view = _function(base.ggml_view_2d, pointer, pointer, pointer, integer, integer, size, size)
        self.graph = _function(base.ggml_new_graph_custom, pointer, pointer, size, ctypes.c_bool)
        self.expand = _function(base.ggml_build_forward_expand, None, pointer, pointer)
        self.quantize = _function(
            base.ggml_quantize_chunk, size, ctypes.c_int, pointer, pointer, integer, integer, integer, pointer
        )
        self.plan = _function(self._cpu.ggml_graph_plan, _Plan, pointer, ctypes.c_int, pointer)
        self.compute = _function(self._cpu.ggml_graph_compute, ctypes.c_int, pointer, ctypes.POINTER(_Plan))


def _function(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, list(arguments)
    return function


@dataclass
class _Graph:
    """One storage's matrices, built in a context of their own."""

    ggml: _Ggml
    kind: int
    tokens: int

    def __post_init__(self) -> None:
        self.context = self.ggml.init(_Memory(2**30, None, False))
        self.graph = self.ggml.graph(self.context, _NODES, False)
        self._rng = np.random.default_rng(0)
        self._inputs: dict[int, Any] = {}
        self.weights = 0

    def weight(self, inputs: int, outputs: int) -> Any:
        """Make a random weight, (outputs, inputs), of the graph's type."""
        tensor = self.ggml.tensor(self.context, self.kind, inputs, outputs)
        values = self._rng.standard_normal((outputs, inputs), dtype=np.float32)
        self.weights += self.ggml.quantize(
            self.kind, values.ctypes.data, self.ggml.data(tensor), 0, outputs, inputs, None
        )
        return tensor

    def input(self, features: int) -> Any:
        """Make an activation of so many features, shared by all matrices that read it."""
        if features not in self._inputs:
            tensor = self.ggml.tensor(self.context, 0, features, self.tokens)
            values = self._rng.standard_normal((self.tokens, features), dtype=np.float32)
            ctypes.memmove(self.ggml.data(tensor), values.ctypes.data, values.nbytes)
            self._inputs[features] = tensor
        return self._inputs[features]

    def slice(self, tensor: Any, features: int, start: int, stop: int) -> Any:
        """Take neighbouring features of an activation."""
        return self.ggml.view(self.context, tensor, stop - start, self.tokens, 4 * features, 4 * start)

    def multiply(self, weight: Any, activation: Any) -> Any:
        """Multiply an activation by a weight."""
        return self.ggml.multiply(self.context, weight, activation)

    def join(self, *parts: Any) -> Any:
        """Put activations side by side."""
        joined = parts[0]
        for part in parts[1:]:
            joined = self.ggml.concat(self.context, joined, part, 0)
        return joined

    def timer(self, threads: int) -> Callable[[], float]:
        """Plan the graph; the function that is returned computes it once and says how many milliseconds it took."""
        plan = self.ggml.plan(self.graph, threads, None)
        work = np.zeros(max(plan.work_size, 1), dtype=np.uint8)
        plan.work_data = work.ctypes.data

        def once() -> float:
            started = time.perf_counter()
            if self.ggml.compute(self.graph, ctypes.byref(plan)) != 0:
                raise RuntimeError("ggml could not compute the graph")
            # The plan points into this array.
            return (time.perf_counter() - started) * 1e3 + 0.0 * len(work)

        return once


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    ggml, rows = _Ggml(), []
    for weights in ("Q8_0",) if arguments.quick else TYPES:
        for factor in (0.5,) if arguments.quick else (0.75, 0.5, 0.35):
            ranks = ranks_at(demo.loaded.specs, factor, "pair", _RANK_MULTIPLE)
            for tokens in (1, PROMPT_TOKENS):
                graphs = {
                    storage: _build(ggml, demo.loaded.specs, ranks, storage, TYPES[weights], tokens)
                    for storage in ("pair", "pivoted")
                }
                for threads in (arguments.threads,) if arguments.quick else (1, 2):
                    times = _measure(graphs, threads, 20 if tokens > 1 else 100)
                    facts = {"weights": weights, "factor": factor, "tokens": tokens, "threads": threads}
                    sizes = {f"{storage} MiB": graph.weights / 2**20 for storage, graph in graphs.items()}
                    rows.append(facts | sizes | times)
                for graph in graphs.values():
                    ggml.free(graph.context)
    finish("llama_storage", demo, arguments, started, rows)


def _build(ggml: _Ggml, specs: Sequence[MatrixSpec], ranks: Ranks, storage: str, kind: int, tokens: int) -> _Graph:
    graph = _Graph(ggml, kind, tokens)
    for spec in specs:
        rank = ranks[spec.name]
        if rank is None:
            output = graph.multiply(graph.weight(spec.in_features, spec.out_features), graph.input(spec.in_features))
        else:
            output = (_pair if storage == "pair" else _pivoted)(graph, spec, rank)
        ggml.expand(graph.graph, output)
    return graph


def _pair(graph: _Graph, spec: MatrixSpec, rank: int) -> Any:
    projected = graph.multiply(graph.weight(spec.in_features, rank), graph.input(spec.in_features))
    return graph.multiply(graph.weight(rank, spec.out_features), projected)


def _pivoted(graph: _Graph, spec: MatrixSpec, rank: int) -> Any:
    activation, features = graph.input(spec.in_features), spec.in_features
    if narrow_side(spec) == "input":
        start = _middle(features, rank)
        pivots = graph.slice(activation, features, start, start + rank)
        before = graph.slice(activation, features, 0, start)
        rest = graph.join(before, graph.slice(activation, features, start + rank, features))
        further = graph.multiply(graph.weight(features - rank, rank), rest)
        projected = graph.ggml.add(graph.context, further, pivots)
        return graph.multiply(graph.weight(rank, spec.out_features), projected)
    start, others = _middle(spec.out_features, rank), spec.out_features - rank
    projected = graph.multiply(graph.weight(features, rank), activation)
    further = graph.multiply(graph.weight(rank, others), projected)
    after = graph.slice(further, others, start, others)
    return graph.join(graph.slice(further, others, 0, start), projected, after)


def _middle(features: int, rank: int) -> int:
    return (features - rank) // 64 * 32 or (features - rank) // 2


def _measure(graphs: dict[str, _Graph], threads: int, repeats: int) -> dict[str, Any]:
    timers = {storage: graph.timer(threads) for storage, graph in graphs.items()}
    samples: dict[str, list[float]] = {storage: [] for storage in graphs}
    for repeat in range(-3, repeats):
        for storage in list(graphs) if repeat % 2 else list(graphs)[::-1]:
            spent = timers[storage]()
            if repeat >= 0:
                samples[storage].append(spent)
    ratios = np.asarray(samples["pair"]) / np.asarray(samples["pivoted"])
    ratio, low, high = median_interval(ratios, np.random.default_rng(0))
    medians = {f"{storage} ms": float(np.median(samples[storage])) for storage in graphs}
    return medians | {"ratio": ratio, "interval": f"{low:.2f}-{high:.2f}"}


if __name__ == "__main__":
    main()

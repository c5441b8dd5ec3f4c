"""Measures what a time table holds, on this machine, in the runtime and with the threads of a target.

One small matrix alone would be timed out of the processor's caches. So a graph holds several copies of a matrix, as the
model holds one in each layer, and the graphs of all matrices take turns with the dense model: between two runs of one,
the weights of all the others have passed.
"""

import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sieve_edge.device.matrix_graphs import SPARE_NUMBERS, MatrixGraph
from sieve_edge.device.ort import OrtGraph, OrtTextModel
from sieve_edge.device.times import TimedMatrix, Times
from sieve_edge.device.timing import WARM_UP_REPEATS, timed_decode, timed_prefill
from sieve_edge.protocols import Float32, Float64, Progress

CPU_INFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "Model", "Hardware")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_GRAPH_BYTES = 16 * 2**20
_MIN_COPIES = 16
_DECODE_STEPS = 4
_SEED = 0

Runs = tuple[Callable[[], None], Callable[[], None]]
"""Runs a graph on a prompt, and on one token."""


def measure(
    folder: Path,
    prompt_ids: Sequence[int],
    matrices: Sequence[TimedMatrix],
    layers: int,
    threads: int,
    provider: str,
    repeats: int,
    progress: Progress,
) -> tuple[list[Times], Times]:
    """Time matrices and the dense model in turn, in this process.

    Args:
        folder: Exported dense model.
        prompt_ids: Tokens of the prompt.
        matrices: What to time.
        layers: Layers of the model.
        threads: Threads of one operator.
        provider: Execution provider.
        repeats: Measured repeats, after a warm-up.
        progress: Told of each matrix that was made ready, and of each measured repeat.

    Returns:
        ``(times of each matrix, times of the dense model)``, medians over the repeats.
    """
    dense = OrtTextModel(folder, threads, provider)
    numbers = _random_numbers(matrices, len(prompt_ids))

    def ready(graph: bytes, width: int) -> Runs:
        loaded = OrtGraph(graph, threads, provider)
        prompt, step = (numbers[: tokens * width].reshape(1, tokens, width) for tokens in (len(prompt_ids), 1))
        return loaded.bind(prompt), loaded.bind(step)

    copies = [_copies(matrix, layers) for matrix in matrices]
    # The first graph holds no matrix: what it takes is the cost of a run.
    runs = [ready(_graph(matrices[0], 0, numbers), matrices[0].in_features)]
    for matrix, count in zip(matrices, copies, strict=True):
        runs.append(ready(_graph(matrix, count, numbers), matrix.in_features))
        progress(1)
    model, prefill_ms, decode_ms = _interleaved(dense, prompt_ids, runs, repeats, progress)
    each = [np.maximum(kind[1:] - kind[0], 0.0) / copies for kind in (prefill_ms, decode_ms)]
    return list(zip(each[0].tolist(), each[1].tolist(), strict=True)), model


def machine_facts() -> dict[str, Any]:
    """Say what times depend on, beside the target's settings.

    Returns:
        Processor, cores, and the version of each installed runtime; JSON-compatible.
    """
    versions = {}
    for package in _RUNTIMES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": _processor(), "cores": psutil.cpu_count(), **versions}


def _interleaved(
    dense: OrtTextModel, prompt_ids: Sequence[int], runs: Sequence[Runs], repeats: int, progress: Progress
) -> tuple[Times, Float64, Float64]:
    """Let the dense model and the graphs take turns; medians of the model, and of each graph's prompts and steps."""
    model: tuple[list[float], list[float]] = ([], [])
    prefill: list[list[float]] = []
    decode: list[list[float]] = []
    for repeat in range(-WARM_UP_REPEATS, repeats):
        if repeat == 0:
            model, prefill, decode = ([], []), [], []
        order = range(len(runs))[:: 1 if repeat % 2 == 0 else -1]
        # All prompts first, then all decoding, so that no matrix is decoded with weights that its prompt left behind.
        first_ms, token, past = timed_prefill(dense, prompt_ids)
        model[0].append(first_ms)
        prefill.append(_turns(runs, order, 0))
        model[1].extend(timed_decode(dense, token, past, len(prompt_ids), _DECODE_STEPS))
        decode.append(_turns(runs, order, 1))
        progress(1 if repeat >= 0 else 0)
    medians = float(np.median(model[0])), float(np.median(model[1]))
    return medians, np.median(prefill, axis=0), np.median(decode, axis=0)


def _turns(runs: Sequence[Runs], order: Sequence[int], kind: int) -> list[float]:
    milliseconds = [0.0] * len(runs)
    for index in order:
        start = time.perf_counter()
        runs[index][kind]()
        milliseconds[index] = (time.perf_counter() - start) * 1e3
    return milliseconds


def _graph(matrix: TimedMatrix, copies: int, numbers: Float32) -> bytes:
    graph = MatrixGraph(numbers)
    graph.add_nothing(matrix.in_features)
    for _ in range(copies):
        if matrix.rank is None:
            graph.add_dense(matrix.part_features, matrix.in_features)
        else:
            graph.add_factored(matrix.part_features, matrix.in_features, matrix.rank, matrix.storage)
    return graph.serialize()


def _copies(matrix: TimedMatrix, layers: int) -> int:
    """As many as the model has layers; fewer of large ones, for memory, and more of few, against the run's own cost."""
    bytes_each = 4 * _weight_count(matrix)
    return max(min(max(layers, _MIN_COPIES), _GRAPH_BYTES // bytes_each), 1)


def _weight_count(matrix: TimedMatrix) -> int:
    """Count a matrix's numbers, those that pivots save too."""
    out_features = sum(matrix.part_features)
    if matrix.rank is None:
        return out_features * matrix.in_features
    return matrix.rank * (out_features + matrix.in_features)


def _random_numbers(matrices: Sequence[TimedMatrix], tokens: int) -> Float32:
    count = max(max(_weight_count(matrix), tokens * matrix.in_features) for matrix in matrices)
    return np.random.default_rng(_SEED).standard_normal(count + SPARE_NUMBERS, dtype=np.float32)


def _processor() -> str:
    """Name the processor; boards without a model name give their own."""
    lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPU_INFO.is_file() else []
    named = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return next((named[name] for name in _NAMES if named.get(name)), platform.processor() or platform.machine())

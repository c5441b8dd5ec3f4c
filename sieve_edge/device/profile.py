"""Measures what a time table holds, on this machine, in the runtime and with the threads of a target.

One small matrix alone would be timed out of the processor's caches. So a graph holds several copies of a matrix, as the
model holds one in each layer, and the graphs of all matrices take turns with the dense model: between two runs of one,
the weights of all the others have passed.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sieve_edge.device.ggml import GgmlGraph
from sieve_edge.device.ort import OrtGraph
from sieve_edge.device.runtimes import Runtime
from sieve_edge.device.times import TimedMatrix, Times
from sieve_edge.device.timing import WARM_UP_REPEATS, timed_decode, timed_prefill
from sieve_edge.protocols import Float32, Float64, Progress, TextModel
from sieve_edge.weight_types import BYTES, main_type

_SPARE_NUMBERS = 2**16
"""More than a graph has weights: each starts at a number of its own."""

_GRAPH_BYTES = 16 * 2**20
_MIN_COPIES = 16
_SEED = 0

Runs = tuple[Callable[[], None], Callable[[], None]]
"""Runs a graph on a prompt, and on one token."""


def measure(
    runtime: Runtime,
    quantization: str,
    folder: Path,
    prompt_ids: Sequence[int],
    matrices: Sequence[TimedMatrix],
    layers: int,
    decode_tokens: int,
    repeats: int,
    progress: Progress,
) -> tuple[list[Times], Times]:
    """Time matrices and the dense model in turn, in this process.

    Args:
        runtime: How exported folders are run.
        quantization: Of the target; of a mixture the type that most of its tensors have is timed.
        folder: Exported dense model.
        prompt_ids: Tokens of the prompt.
        matrices: What to time.
        layers: Layers of the model.
        decode_tokens: Decode steps in a row of the dense model, as many as validate times.
        repeats: Measured repeats, after a warm-up.
        progress: Told of each matrix that was made ready, and of each measured repeat.

    Returns:
        ``(times of each matrix, times of the dense model)``, medians over the repeats.
    """
    # Of the prompt, of the prompt again and of every decode step: llama.cpp keeps the past of two repeats.
    dense = runtime.open(folder, 3 * (len(prompt_ids) + decode_tokens))
    numbers = _random_numbers(matrices, len(prompt_ids))
    ready = _onnx_runs if runtime.name == "onnxruntime" else _ggml_runs
    copies = [_copies(matrix, layers, BYTES[main_type(quantization)]) for matrix in matrices]
    # The first graph holds no matrix: what it takes is the cost of a run.
    runs = [ready(runtime, quantization, matrices[0], 0, len(prompt_ids), numbers)]
    for matrix, count in zip(matrices, copies, strict=True):
        runs.append(ready(runtime, quantization, matrix, count, len(prompt_ids), numbers))
        progress(1)
    model, prefill_ms, decode_ms = _interleaved(dense, prompt_ids, runs, decode_tokens, repeats, progress)
    each = [np.maximum(kind[1:] - kind[0], 0.0) / copies for kind in (prefill_ms, decode_ms)]
    return list(zip(each[0].tolist(), each[1].tolist(), strict=True)), model


def _interleaved(
    dense: TextModel,
    prompt_ids: Sequence[int],
    runs: Sequence[Runs],
    decode_tokens: int,
    repeats: int,
    progress: Progress,
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
        model[1].extend(timed_decode(dense, token, past, len(prompt_ids), decode_tokens))
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


def _onnx_runs(
    runtime: Runtime, quantization: str, matrix: TimedMatrix, copies: int, tokens: int, numbers: Float32
) -> Runs:
    # Needs onnx, which a device that only validates does not have.
    from sieve_edge.device.matrix_graphs import MatrixGraph

    graph = MatrixGraph(numbers, quantization)
    graph.add_nothing(_inputs(matrix))
    for _ in range(copies):
        shape = matrix.multiplied()
        if shape is None:
            graph.add_factored(matrix.part_features, matrix.in_features, matrix.rank_or(0), matrix.storage)
        else:
            graph.add_dense(*shape)
    loaded = OrtGraph(graph.serialize(), runtime.threads, runtime.provider, runtime.half)
    width = _inputs(matrix)
    prompt, step = (numbers[: count * width].reshape(1, count, width) for count in (tokens, 1))
    return loaded.bind(prompt), loaded.bind(step)


def _ggml_runs(
    runtime: Runtime, quantization: str, matrix: TimedMatrix, copies: int, tokens: int, numbers: Float32
) -> Runs:
    graph = GgmlGraph(matrix, copies, quantization, runtime.threads, numbers)
    return graph.bind(tokens), graph.bind(1)


def _copies(matrix: TimedMatrix, layers: int, bytes_of_one: float) -> int:
    """As many as the model has layers; fewer of large ones, for memory, and more of few, against the run's own cost."""
    bytes_each = bytes_of_one * _weight_count(matrix)
    return max(min(max(layers, _MIN_COPIES), int(_GRAPH_BYTES / bytes_each)), 1)


def _weight_count(matrix: TimedMatrix) -> int:
    """Count a matrix's numbers, those that pivots save too."""
    shape = matrix.multiplied()
    if shape is None:
        return matrix.rank_or(0) * (sum(matrix.part_features) + matrix.in_features)
    return sum(shape[0]) * shape[1]


def _inputs(matrix: TimedMatrix) -> int:
    shape = matrix.multiplied()
    return matrix.in_features if shape is None else shape[1]


def _random_numbers(matrices: Sequence[TimedMatrix], tokens: int) -> Float32:
    count = max(max(_weight_count(matrix), tokens * matrix.in_features) for matrix in matrices)
    return np.random.default_rng(_SEED).standard_normal(count + _SPARE_NUMBERS, dtype=np.float32)

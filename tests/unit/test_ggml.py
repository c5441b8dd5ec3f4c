"""llama.cpp's operators on one matrix compute what they are timed for."""

import ctypes

import numpy as np
import pytest

from sieve_edge.device.ggml import TYPES, GgmlGraph
from sieve_edge.device.times import TimedMatrix

IN, PARTS, RANK = 64, (96, 32), 32
NUMBERS = np.random.default_rng(0).standard_normal(2**14, dtype=np.float32)
ERRORS = {"F32": 1e-5, "F16": 1e-2, "Q8_0": 0.05, "Q4_0": 0.5}


def last_output(graph, tokens):
    """What the last multiplication wrote, (T, O)."""
    base = graph._base
    size = tokens * PARTS[-1]
    data = (ctypes.c_float * size).from_address(base.ggml_get_data(graph.last))
    return np.asarray(data).reshape(tokens, PARTS[-1])


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("tokens", [5, 1])
def test_every_copy_multiplies(quantization, rank, tokens):
    matrix = TimedMatrix(PARTS, IN, rank, "dense" if rank is None else "pair")
    graph = GgmlGraph(matrix, 3, quantization, 2, NUMBERS)
    graph.bind(tokens)()
    hidden_TI = NUMBERS[: tokens * IN].reshape(tokens, IN)
    if rank is not None:
        hidden_TI = hidden_TI @ NUMBERS[: rank * IN].reshape(rank, IN).T
    width = rank or IN
    expected = hidden_TI @ NUMBERS[: PARTS[-1] * width].reshape(PARTS[-1], width).T
    error = np.abs(last_output(graph, tokens) - expected).max() / np.abs(expected).max()
    assert error < ERRORS[quantization]


def test_no_copies_compute_next_to_nothing():
    matrix = TimedMatrix(PARTS, IN, None, "dense")
    GgmlGraph(matrix, 0, "Q8_0", 1, NUMBERS).bind(4)()

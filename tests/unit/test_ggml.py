"""llama.cpp's operators on one matrix compute what they are timed for."""

import ctypes

import numpy as np
import pytest

from sieve_edge.device.ggml import GgmlGraph
from sieve_edge.device.times import TimedMatrix

IN, PARTS, RANK = 512, (96, 32), 256
NUMBERS = np.random.default_rng(0).standard_normal(2**17, dtype=np.float32)
ERRORS = {"F32": 1e-5, "F16": 1e-2, "Q8_0": 0.05, "Q5_K_M": 0.2, "Q4_K_M": 0.5, "Q4_0": 0.5}


def last_output(graph, tokens):
    """What the last multiplication wrote, (T, O)."""
    base = graph._base
    size = tokens * PARTS[-1]
    data = (ctypes.c_float * size).from_address(base.ggml_get_data(graph.last))
    return np.asarray(data).reshape(tokens, PARTS[-1])


@pytest.mark.parametrize("quantization", ERRORS)
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


@pytest.mark.parametrize(("width", "kind"), [(256, 12), (96, 6), (48, 1)])
def test_a_row_that_blocks_do_not_fill_is_timed_in_the_type_it_is_stored_in(width, kind):
    graph = GgmlGraph(TimedMatrix(PARTS, width, None, "dense"), 1, "Q4_K_M", 1, NUMBERS)
    assert graph._type(width) == kind


@pytest.mark.parametrize(("storage", "shape"), [("fewer_inputs", (PARTS, 64)), ("fewer_outputs", ((64, 21), IN))])
def test_a_matrix_that_lost_features_multiplies_by_what_is_left(storage, shape):
    rows, width = shape
    graph = GgmlGraph(TimedMatrix(PARTS, IN, 64, storage), 2, "F32", 1, NUMBERS)
    graph.bind(1)()
    output = (ctypes.c_float * rows[-1]).from_address(graph._base.ggml_get_data(graph.last))
    expected = NUMBERS[: rows[-1] * width].reshape(rows[-1], width) @ NUMBERS[:width]
    assert np.asarray(output) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_no_copies_compute_next_to_nothing():
    matrix = TimedMatrix(PARTS, IN, None, "dense")
    GgmlGraph(matrix, 0, "Q8_0", 1, NUMBERS).bind(4)()

"""Products are the same to the last bit wherever their arrays lie: runs that go on, and workers, depend on it."""

import numpy as np
import torch

import sieve_edge


def placed(array, offset):
    """A copy of an array that begins so many bytes after a multiple of 64."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return torch.from_numpy(copy)


def test_a_product_does_not_depend_on_where_its_arrays_lie():
    assert sieve_edge.__version__
    rng = np.random.default_rng(0)
    for rows, inputs, outputs in ((1, 32, 32), (1, 32, 96), (7, 32, 32), (1, 96, 32)):
        hidden, weight = (rng.normal(size=(count, inputs)).astype(np.float32) for count in (rows, outputs))
        found = {
            torch.nn.functional.linear(placed(hidden, first), placed(weight, second)).numpy().tobytes()
            for first in (0, 4, 16, 32)
            for second in (0, 4, 8, 16, 32, 48)
        }
        assert len(found) == 1, (rows, inputs, outputs)

"""Quantized blocks: what is stored is what was meant, and the calibrated rounding loses less where it counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sieve_edge.config import BLOCK
from sieve_edge.model.blocks import Blocks, pack, restore, round_nearest, round_with_gram

BITS = st.sampled_from([4, 8])
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 100))


def weight(seed, shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 9999), SHAPES, BITS)
def test_no_number_is_off_by_more_than_a_step(seed, shape, bits):
    weight_OI = weight(seed, shape)
    blocks = round_nearest(weight_OI, bits)
    assert blocks.codes_OK.shape[1] % BLOCK == 0
    assert int(blocks.codes_OK.max()) < 2**bits
    steps_OI = blocks.scales_OB.abs().repeat_interleave(BLOCK, 1)[:, : shape[1]]
    # Half a step, and a whole one at the end that has no code.
    assert bool(((restore(blocks, shape[1]) - weight_OI).abs() <= steps_OI * 1.0001).all())


@given(st.integers(0, 9999), SHAPES, BITS)
def test_what_was_quantized_quantizes_to_itself(seed, shape, bits):
    once = restore(round_nearest(weight(seed, shape), bits), shape[1])
    torch.testing.assert_close(restore(round_nearest(once, bits), shape[1]), once, rtol=1e-6, atol=1e-7)


@given(st.integers(0, 9999), SHAPES)
def test_bytes_hold_the_codes(seed, shape):
    blocks = round_nearest(weight(seed, shape), 4)
    packed = pack(blocks)
    assert packed.shape == (*blocks.scales_OB.shape, BLOCK // 2)
    unpacked = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    assert torch.equal(unpacked, blocks.codes_OK)
    assert torch.equal(pack(Blocks(blocks.codes_OK, blocks.scales_OB, 8)).flatten(1), blocks.codes_OK)


@given(st.integers(0, 9999), st.integers(33, 96))
def test_calibrated_rounding_loses_less_of_the_output(seed, features):
    weight_OI = weight(seed, (24, features)).double()
    rows = weight(seed + 1, (400, 8)).double() @ weight(seed + 2, (8, features)).double()
    rows += 0.1 * weight(seed + 3, (400, features)).double()
    gram_II = rows.T @ rows

    def lost(blocks):
        missing = weight_OI - restore(blocks, features).double()
        return float(((missing @ gram_II) * missing).sum())

    assert lost(round_with_gram(weight_OI, gram_II, 4)) < lost(round_nearest(weight_OI, 4))


def test_inputs_that_are_uncorrelated_are_rounded_to_the_nearest():
    weight_OI = weight(1, (5, 64)).double()
    plain, calibrated = round_nearest(weight_OI, 4), round_with_gram(weight_OI, torch.eye(64).double(), 4)
    assert torch.equal(plain.codes_OK, calibrated.codes_OK)
    torch.testing.assert_close(plain.scales_OB, calibrated.scales_OB)


def test_a_block_of_zeros_stays_zero():
    blocks = round_nearest(torch.zeros(2, 40), 4)
    assert restore(blocks, 40).abs().sum() == 0.0
    assert pytest.approx(1.0) == float(blocks.scales_OB[0, 0])

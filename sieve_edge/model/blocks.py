"""Weights in blocks of small integers, each block with one scale.

Dimension key: O out_features, I in_features, C inputs of a block, K inputs padded to whole blocks, B blocks of a row.
Source: ONNX Runtime's operator MatMulNBits, for the layout; GPTQ, arXiv 2210.17323, for ``round_with_gram``.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sieve_edge.config import BLOCK


class Blocks(NamedTuple):
    """A quantized weight: ``(code - 2 ** (bits - 1)) * scale``.

    Attributes:
        codes_OK: Unsigned integers below ``2 ** bits``, uint8, (O, K); padding is the code of zero.
        scales_OB: Scale of each block, float32, (O, B).
        bits: 4 or 8.
    """

    codes_OK: Tensor
    scales_OB: Tensor
    bits: int


def round_nearest(weight_OI: Tensor, bits: int) -> Blocks:
    """Quantize every number to the nearest code.

    Args:
        weight_OI: Weight, (O, I).
        bits: 4 or 8.

    Returns:
        The quantized weight.
    """
    padded_OK = _padded(weight_OI)
    blocks_OBC = padded_OK.unflatten(1, (-1, BLOCK))
    scales_OB = _scales(blocks_OBC, bits)
    codes_OBC = _codes(blocks_OBC, scales_OB[..., None], bits)
    return Blocks(codes_OBC.flatten(1), scales_OB.float(), bits)


def round_with_gram(weight_OI: Tensor, gram_II: Tensor, bits: int, damping: float = 0.01) -> Blocks:
    """Quantize one input after the other; what each loses is made up for by those that follow.

    Args:
        weight_OI: Weight, (O, I).
        gram_II: Second moment of its inputs, float64, (I, I).
        bits: 4 or 8.
        damping: Added to the diagonal, as a fraction of its mean.

    Returns:
        The quantized weight, of least output error in that order.

    Source:
        GPTQ, arXiv 2210.17323, algorithm 1.
    """
    features = weight_OI.shape[1]
    left_OK = _padded(weight_OI.double())
    factor_KK = torch.eye(left_OK.shape[1], dtype=torch.float64, device=left_OK.device)
    factor_KK[:features, :features] = _inverse_factor(gram_II, damping)
    codes, scales = [], []
    for start in range(0, left_OK.shape[1], BLOCK):
        block_OC, factor_CC = left_OK[:, start : start + BLOCK], factor_KK[start : start + BLOCK, start : start + BLOCK]
        scale_O = _scales(block_OC, bits)
        codes_OC, errors_OC = torch.empty_like(block_OC, dtype=torch.uint8), torch.empty_like(block_OC)
        for index in range(BLOCK):
            codes_OC[:, index] = _codes(block_OC[:, index], scale_O, bits)
            kept_O = (codes_OC[:, index].double() - 2.0 ** (bits - 1)) * scale_O
            errors_OC[:, index] = (block_OC[:, index] - kept_O) / factor_CC[index, index]
            block_OC[:, index:] -= errors_OC[:, index, None] * factor_CC[index, index:]
        left_OK[:, start + BLOCK :] -= errors_OC @ factor_KK[start : start + BLOCK, start + BLOCK :]
        codes.append(codes_OC)
        scales.append(scale_O)
    return Blocks(torch.cat(codes, dim=1), torch.stack(scales, dim=1).float(), bits)


def restore(blocks: Blocks, features: int) -> Tensor:
    """Compute the weight that a quantized one stands for.

    Args:
        blocks: Quantized weight.
        features: I.

    Returns:
        Weight, float32, (O, I).
    """
    centred_OBC = blocks.codes_OK.float().unflatten(1, (-1, BLOCK)) - 2.0 ** (blocks.bits - 1)
    weight_OK: Tensor = (centred_OBC * blocks.scales_OB[..., None]).flatten(1)
    return weight_OK[:, :features]


def pack(blocks: Blocks) -> Tensor:
    """Put codes in bytes, the first of a pair in the lower half.

    Args:
        blocks: Quantized weight.

    Returns:
        uint8, (O, B, BLOCK * bits / 8).
    """
    codes_OBC: Tensor = blocks.codes_OK.unflatten(1, (-1, BLOCK))
    if blocks.bits == 8:
        return codes_OBC.contiguous()
    packed: Tensor = codes_OBC[..., 0::2] | (codes_OBC[..., 1::2] << 4)
    return packed


def _padded(weight_OI: Tensor) -> Tensor:
    padded_OK: Tensor = pad(weight_OI, (0, -weight_OI.shape[1] % BLOCK))
    # A copy in any case, since it is worked on in place.
    return padded_OK.clone()


def _scales(blocks: Tensor, bits: int) -> Tensor:
    """Give the number of largest magnitude the code 0, which has no positive counterpart."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scales = -largest / 2.0 ** (bits - 1)
    return torch.where(scales == 0.0, torch.ones_like(scales), scales)


def _codes(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    zero = 2 ** (bits - 1)
    codes: Tensor = (torch.round(values / scales) + zero).clamp(0, 2 * zero - 1)
    return codes.to(torch.uint8)


def _inverse_factor(gram_II: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse; an input that never was anything but zero gets the mean of the others."""
    damped_II = gram_II + damping * gram_II.diagonal().mean() * torch.eye(len(gram_II)).to(gram_II)
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(damped_II))
    factor_II: Tensor = torch.linalg.cholesky(inverse_II, upper=True)
    return factor_II

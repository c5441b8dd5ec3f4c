"""The closed form: the rank-R factors that keep a matrix's outputs best, and their error at every rank.

Pure functions on tensors. Dimension key: O out_features, I in_features, R rank, D features of one side.

With S the output metric (O, O) and G = X X^T (I, I), the error of ``What`` is
``tr(S (W - What) G (W - What)^T)``, and by Eckart-Young the best ``What`` of rank R keeps the first R singular
directions of ``S^{1/2} W G^{1/2}``. Where O >= I they are found on the input's side, where S enters only as
``W^T S W`` (I, I); where O <= I on the output's side, where G enters only as ``Y Y^T = W G W^T`` (O, O).
Source: LLM-Sieve, section 4.1, for the error with S = I; method.md, section 4, for the form.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sieve_edge.errors import CalibrationError


class Factors(NamedTuple):
    """Nested factors: the first R rows of both are the rank-R projection.

    Attributes:
        down_RI: (Rmax, I).
        up_RO: (Rmax, O); transposed, so that its first rows are contiguous.
        error_R: Relative error at ranks 0 to Rmax, in the metric the factors were found in, float64, (Rmax + 1,).
        energy: What a relative error of 1 amounts to, in that metric.
        found_rank: Numerical rank of the statistics.
    """

    down_RI: Tensor
    up_RO: Tensor
    error_R: Tensor
    energy: float
    found_rank: int


def check_moment(moment_DD: Tensor) -> None:
    """Refuse statistics that nothing can be learned from.

    Args:
        moment_DD: Second moment, (D, D).

    Raises:
        CalibrationError: If it is not finite, or is zero.
    """
    if not bool(torch.isfinite(moment_DD).all()):
        raise CalibrationError("a Gram matrix has values that are not finite; check the model's weights and prompts")
    if float(moment_DD.diagonal().max()) <= 0.0:
        raise CalibrationError("a Gram matrix is zero; the matrix is never reached by the calibration prompts")


def roots(moment_DD: Tensor, relative_cut: float) -> tuple[Tensor, Tensor, int]:
    """Take the square root of a symmetric positive semi-definite matrix, and its pseudo-inverse.

    Args:
        moment_DD: Symmetric, PSD, float64, (D, D).
        relative_cut: Eigenvalues below this fraction of the largest count as zero.

    Returns:
        ``(root (D, D), pseudo-inverse of root (D, D), numerical rank)``.

    """
    check_moment(moment_DD)
    values_D, vectors_DD = torch.linalg.eigh(moment_DD)
    kept = values_D > relative_cut * values_D[-1].clamp(min=0.0)
    rank = int(kept.sum())
    scale_K, basis_DK = values_D[kept].sqrt(), vectors_DD[:, kept]
    return (basis_DK * scale_K) @ basis_DK.T, (basis_DK / scale_K) @ basis_DK.T, rank


def damped(moment_DD: Tensor, identity_DD: Tensor, trace: float, features: int, damping: float) -> Tensor:
    """Add a share of the mean eigenvalue to a Fisher matrix.

    Args:
        moment_DD: S itself (O, O), or ``W^T S W`` (I, I), float64.
        identity_DD: What the identity becomes on that side: I (O, O), or ``W^T W`` (I, I).
        trace: Trace of S.
        features: O, so that ``trace / features`` is the mean eigenvalue of S.
        damping: Share that is added.

    Returns:
        The damped moment, float64, (D, D).
    """
    return moment_DD + damping * (trace / features) * identity_DD


def project_input_side(weight_OI: Tensor, gram_II: Tensor, metric_II: Tensor, relative_cut: float) -> Factors:
    """Find the best factors on the input's side.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        gram_II: ``X X^T``, float64, (I, I).
        metric_II: ``W^T S W``, float64, (I, I); ``W^T W`` for plain least squares.
        relative_cut: See ``roots``.

    Returns:
        Nested factors for every rank up to min(O, I).

    Source:
        method.md, section 4, closed_form.
    """
    root_II, inverse_II, found = roots(gram_II, relative_cut)
    values_I, vectors_II = torch.linalg.eigh(root_II @ metric_II @ root_II)
    order = torch.arange(len(values_I) - 1, -1, -1, device=values_I.device)[: min(weight_OI.shape)]
    basis_IR = vectors_II[:, order]
    down_RI = basis_IR.T @ inverse_II
    up_RO = basis_IR.T @ root_II @ weight_OI.T
    energy = float(values_I.clamp(min=0.0).sum())
    return Factors(down_RI, up_RO, tail(values_I.flip(0), len(order)), energy, found)


def project_output_side(weight_OI: Tensor, output_gram_OO: Tensor, metric_OO: Tensor, relative_cut: float) -> Factors:
    """Find the best factors on the output's side.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        output_gram_OO: ``Y Y^T = W G W^T``, float64, (O, O).
        metric_OO: S, positive definite, float64, (O, O); the identity for plain least squares.
        relative_cut: See ``roots``.

    Returns:
        Nested factors for every rank up to min(O, I).

    Source:
        method.md, section 4, closed_form.
    """
    root_OO, inverse_OO, _ = roots(metric_OO, relative_cut)
    values_O, vectors_OO = torch.linalg.eigh(root_OO @ output_gram_OO @ root_OO)
    found = int((values_O > relative_cut * values_O[-1]).sum())
    order = torch.arange(len(values_O) - 1, -1, -1, device=values_O.device)[: min(weight_OI.shape)]
    basis_OR = vectors_OO[:, order]
    down_RI = basis_OR.T @ root_OO @ weight_OI
    up_RO = basis_OR.T @ inverse_OO
    energy = float(values_O.clamp(min=0.0).sum())
    return Factors(down_RI, up_RO, tail(values_O.flip(0), len(order)), energy, found)


def eye_like(features: int, like: Tensor) -> Tensor:
    """Make an identity.

    Args:
        features: D.
        like: Tensor whose dtype and device it gets.

    Returns:
        Identity, (D, D).
    """
    return torch.eye(features, dtype=like.dtype, device=like.device)


def relative_error(weight_OI: Tensor, approximate_OI: Tensor, gram_II: Tensor) -> float:
    """Measure how much of a matrix's output an approximation loses.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        approximate_OI: Weight in its place, float64, (O, I).
        gram_II: ``X X^T``, float64, (I, I).

    Returns:
        ``||(W - What) X||^2 / ||W X||^2``.

    Source:
        LLM-Sieve, section 4.1.
    """
    difference_OI = weight_OI - approximate_OI
    lost = ((difference_OI @ gram_II) * difference_OI).sum()
    total = ((weight_OI @ gram_II) * weight_OI).sum()
    return float(lost / total)


def tail(values_D: Tensor, ranks: int) -> Tensor:
    """Turn energies into relative errors.

    Args:
        values_D: Energy that each further rank gains.
        ranks: Largest rank.

    Returns:
        Share of the energy that is lost at ranks 0 to ``ranks``, (ranks + 1,).
    """
    energy_D = values_D.clamp(min=0.0)
    kept_R = torch.cat([energy_D.new_zeros(1), energy_D.cumsum(0)])[: ranks + 1]
    return (1.0 - kept_R / energy_D.sum()).clamp(min=0.0)

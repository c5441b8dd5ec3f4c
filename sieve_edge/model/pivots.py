"""Pivoted storage: a rank-R pair without the R * R numbers that a choice of basis makes known.

Pivots are R neighbouring features of the residual stream, the input before a non-linearity and the output after
one. Neighbouring pivots cost a slice at run time, where free ones cost a gather; the price is larger coefficients.

Dimension key: O out_features, I in_features, R rank.
Source: PIFA, arXiv 2501.19090, for the storage; docs/decisions.md for the neighbouring pivots.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_COEFFICIENT = 1e4
"""Larger coefficients would cost float32 more than three of its seven digits."""

_STARTS = 9


class Pivoted(NamedTuple):
    """A pivoted pair.

    Attributes:
        start: First pivot.
        coef: (R, I - R) on the input's side, (O - R, R) on the output's side.
        other: The factor that stays whole: up (O, R) on the input's side, down (R, I) on the output's side.
        largest: Largest absolute coefficient.
    """

    start: int
    coef: Tensor
    other: Tensor
    largest: float


def pivot(down_RI: Tensor, up_OR: Tensor, side: str) -> Pivoted | None:
    """Find neighbouring pivots with the smallest coefficients, and rewrite a pair in their terms.

    Args:
        down_RI: (R, I), any floating dtype.
        up_OR: (O, R).
        side: ``"input"`` or ``"output"``.

    Returns:
        float64 factors whose product is that of the pair, or None if no start keeps the coefficients below
        ``MAX_COEFFICIENT``.
    """
    basis_RD = (down_RI if side == "input" else up_OR.T).double()
    other_RE = (up_OR.T if side == "input" else down_RI).double()
    rank, features = basis_RD.shape
    # The coefficients do not depend on the basis of the rows; an orthonormal one keeps the solves accurate.
    triangle_RR, orthonormal_RD = _orthonormal_rows(basis_RD)
    best: tuple[float, int, Tensor] | None = None
    for start in sorted({round(step * (features - rank) / (_STARTS - 1)) for step in range(_STARTS)}):
        pivots_RR = orthonormal_RD[:, start : start + rank]
        rest = torch.cat([orthonormal_RD[:, :start], orthonormal_RD[:, start + rank :]], dim=1)
        coef, failed = torch.linalg.solve_ex(pivots_RR, rest)
        largest = float(coef.abs().max())
        if int(failed) == 0 and largest <= MAX_COEFFICIENT and (best is None or largest < best[0]):
            best = (largest, start, coef)
    if best is None:
        return None
    largest, start, coef = best
    whole_RE = (triangle_RR @ orthonormal_RD[:, start : start + rank]).T @ other_RE
    if side == "input":
        return Pivoted(start, coef, whole_RE.T.contiguous(), largest)
    return Pivoted(start, coef.T.contiguous(), whole_RE, largest)


def _orthonormal_rows(basis_RD: Tensor) -> tuple[Tensor, Tensor]:
    orthonormal_DR, triangle_RR = torch.linalg.qr(basis_RD.T)
    return triangle_RR.T, orthonormal_DR.T

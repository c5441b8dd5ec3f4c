"""The ranks that a search may choose from, and what they store.

With storage ``"width"`` a rank is the number of inputs that a matrix keeps; its source then makes only those.
"""

import math
from collections.abc import Mapping, Sequence

from sieve_edge.artifacts import MatrixSpec

SKIPPED = 0
"""Rank of a matrix whose whole block is left out, its bias too."""

Ranks = Mapping[str, int | None]
"""Matrix name -> rank, None for dense, ``SKIPPED`` for left out."""


def factored_params(rank: int, out_features: int, in_features: int, storage: str) -> int:
    """Count what a factored matrix stores.

    Args:
        rank: R.
        out_features: O.
        in_features: I.
        storage: ``"pair"`` or ``"pivoted"``.

    Returns:
        Parameters, the bias left out.

    Source:
        LLM-Sieve, section 4.1 (pair); PIFA, arXiv 2501.19090 (pivoted).
    """
    saved = rank if storage == "pivoted" else 0
    return rank * (out_features + in_features - saved)


def rank_for(factor: float, out_features: int, in_features: int, storage: str, multiple: int) -> int | None:
    """Find the rank that keeps at most a fraction of a matrix's parameters.

    Args:
        factor: Fraction of the parameters kept, in (0, 1].
        out_features: O.
        in_features: I.
        storage: ``"pair"`` or ``"pivoted"``.
        multiple: The rank is rounded down to a multiple of this, but never to zero.

    Returns:
        The rank, or None where the matrix stays dense: at factor 1, and where the factors
        would store as much as the dense matrix.

    Raises:
        ValueError: If ``factor`` is outside (0, 1].

    Source:
        method.md, section 5.
    """
    if not 0.0 < factor <= 1.0:
        raise ValueError(f"factor {factor} must be in (0, 1]")
    if factor == 1.0:
        return None
    budget = factor * out_features * in_features
    both = out_features + in_features
    exact = (both - math.sqrt(both * both - 4.0 * budget)) / 2.0 if storage == "pivoted" else budget / both
    rank = max(int(exact + 1e-9) // multiple, 1) * multiple
    fits = rank < min(out_features, in_features)
    smaller = factored_params(rank, out_features, in_features, storage) < out_features * in_features
    return rank if fits and smaller else None


def rank_at(spec: MatrixSpec, factor: float, storage: str, multiple: int) -> int | None:
    """Find the rank that keeps at most a fraction of a matrix's parameters.

    Args:
        spec: The matrix.
        factor: Fraction kept, in (0, 1].
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        multiple: The rank is rounded down to a multiple of this, and of the matrix's unit, but never to zero.

    Returns:
        The rank, or None where the matrix stays dense.
    """
    if storage != "width":
        return rank_for(factor, spec.out_features, spec.in_features, storage, multiple)
    step = math.lcm(multiple, spec.unit)
    rank = max(int(factor * spec.in_features + 1e-9) // step, 1) * step
    return rank if factor < 1.0 and rank < spec.in_features else None


def stored_params(spec: MatrixSpec, rank: int | None, storage: str) -> int:
    """Count what a matrix stores at a rank.

    Args:
        spec: The matrix.
        rank: R, None for dense.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.

    Returns:
        Parameters, its source's included, biases left out.
    """
    if rank is None:
        return spec.params
    if storage == "width":
        return rank * spec.params // spec.in_features
    return factored_params(rank, spec.out_features, spec.in_features, storage)


def ranks_at(specs: Sequence[MatrixSpec], factor: float, storage: str, multiple: int) -> Ranks:
    """Turn one factor for all matrices into ranks.

    Args:
        specs: Matrices of the model.
        factor: Fraction of each matrix's parameters that is kept, in (0, 1].
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        multiple: Ranks are rounded down to a multiple of this.

    Returns:
        The rank of each matrix.
    """
    return {spec.name: rank_at(spec, factor, storage, multiple) for spec in specs}


def kept_params(specs: Sequence[MatrixSpec], ranks: Ranks, storage: str) -> int:
    """Count the parameters that the matrices keep.

    Args:
        specs: Matrices of the model.
        ranks: Rank of each.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.

    Returns:
        Parameters, biases left out.
    """
    return sum(stored_params(spec, ranks[spec.name], storage) for spec in specs)

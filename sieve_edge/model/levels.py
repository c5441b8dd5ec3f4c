"""The ranks that a search may choose from."""

from collections.abc import Mapping, Sequence

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.factored import factored_params, rank_for

SKIPPED = 0
"""Rank of a matrix whose whole block is left out, its bias too."""

Ranks = Mapping[str, int | None]
"""Matrix name -> rank, None for dense, ``SKIPPED`` for left out."""


def ranks_at(specs: Sequence[MatrixSpec], factor: float, storage: str, multiple: int) -> Ranks:
    """Turn one factor for all matrices into ranks.

    Args:
        specs: Matrices of the model.
        factor: Fraction of each matrix's parameters that is kept, in (0, 1].
        storage: ``"pair"`` or ``"pivoted"``.
        multiple: Ranks are rounded down to a multiple of this.

    Returns:
        The rank of each matrix.
    """
    return {spec.name: rank_for(factor, spec.out_features, spec.in_features, storage, multiple) for spec in specs}


def kept_params(specs: Sequence[MatrixSpec], ranks: Ranks, storage: str) -> int:
    """Count the parameters that the matrices keep.

    Args:
        specs: Matrices of the model.
        ranks: Rank of each.
        storage: ``"pair"`` or ``"pivoted"``.

    Returns:
        Parameters, biases left out.
    """
    total = 0
    for spec in specs:
        rank = ranks[spec.name]
        total += spec.params if rank is None else factored_params(rank, spec.out_features, spec.in_features, storage)
    return total

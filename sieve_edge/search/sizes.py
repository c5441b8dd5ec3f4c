"""What a plan's weights take on the target's storage, in bytes; never less than the file will."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.config import Target
from sieve_edge.model.levels import SKIPPED, stored_params
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.stored_types import plan_types
from sieve_edge.weight_types import BYTES, FIRST_DOWN, first_down, inner_types, most_bytes


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's parts.

    Attributes:
        fixed: Bytes of everything outside the matrices.
        each: Bytes of a matrix at a rank; None for dense, 0 for left out.
    """

    fixed: float
    each: Callable[[MatrixSpec, int | None], float]


def stored_sizes(loaded: LoadedModel, target: Target) -> Sizes:
    """Count by the types that the dense model's parameters are planned in, and pruned matrices by those they may take.

    Args:
        loaded: Dense model, its matrices as the target prunes them.
        target: Format, quantization, and storage.

    Returns:
        Sizes.
    """
    bytes_of: dict[str, float] = {
        name: math.prod(entry["shape"]) * most_bytes(entry.get("types", [entry["type"]]))
        for name, entry in plan_types(loaded.model, target).items()
    }
    inside = {spec.name: sum(bytes_of[name] for name in _weights(spec)) for spec in loaded.specs}
    first = first_down(target.quantization, loaded.model.config.num_hidden_layers)

    def each(spec: MatrixSpec, rank: int | None) -> float:
        if rank is None:
            return inside[spec.name]
        if rank == SKIPPED:
            return 0.0
        # The second factor, or what is left of a matrix in width, has rows of the rank.
        kinds = {kind for row in (*_rows(spec), rank) for kind in _types(target, row)}
        if spec.kind == "down" and spec.layer < first:
            kinds.add(FIRST_DOWN[target.quantization])
        return stored_params(spec, rank, target.storage) * most_bytes(kinds)

    return Sizes(sum(bytes_of.values()) - sum(inside.values()), each)


def plain_sizes(storage: str, other_params: int) -> Sizes:
    """Count four bytes for each parameter.

    Args:
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        other_params: Parameters outside the matrices.

    Returns:
        Sizes in float32.
    """
    plain = BYTES["F32"]
    return Sizes(other_params * plain, lambda spec, rank: stored_params(spec, rank, storage) * plain)


def _types(target: Target, row: int) -> tuple[str, ...]:
    return inner_types(target.quantization, row) if target.format == "gguf" else (target.quantization,)


def _rows(spec: MatrixSpec) -> tuple[int, ...]:
    return (spec.in_features, *(_rows(spec.source) if spec.source else ()))


def _weights(spec: MatrixSpec) -> list[str]:
    return [*(f"{path}.weight" for path in spec.paths), *(_weights(spec.source) if spec.source else ())]

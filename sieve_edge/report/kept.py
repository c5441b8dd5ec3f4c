"""What a plan keeps of each matrix, and its error at every rank, read from the projection bank without torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sieve_edge.artifacts import PruningPlan
from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.model.levels import SKIPPED, factored_params

POINTS = 32
"""Ranks at which an error curve is shown, about evenly spaced."""

KINDS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class KeptMatrix:
    """A matrix and what became of it.

    Attributes:
        layer: Index of its layer.
        kind: ``qkv``, ``o``, ``gate_up`` or ``down``.
        rank: Rank of the plan, None for dense.
        most: Largest rank that makes sense; with storage ``"width"`` its inputs.
        kept: Fraction of its parameters that is kept.
        errors: ``(rank, share of the output's energy that is lost)``, rising in rank.
    """

    layer: int
    kind: str
    rank: int | None
    most: int
    kept: float
    errors: tuple[tuple[int, float], ...]

    @property
    def name(self) -> str:
        """Layer and kind."""
        return f"{self.layer}.{self.kind}"


def read_kept(bank: Path, plan: PruningPlan) -> tuple[KeptMatrix, ...]:
    """Read the matrices of a plan.

    Args:
        bank: Artifact of learn.
        plan: The plan.

    Returns:
        Matrices by layer, then by kind.

    Raises:
        ArtifactError: If the bank lacks a matrix.
        EnvironmentMissing: If safetensors is not installed.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise EnvironmentMissing(
            "the package safetensors is missing, which reads the projection bank; run: pip install 'sieve-edge[torch]'"
        ) from error
    matrices = []
    for name, rank in plan.ranks.items():
        file = bank / f"{name}.safetensors"
        if not file.is_file():
            raise ArtifactError(f"{file}: missing; run the build's command again")
        with safe_open(file, framework="numpy") as tensors:
            matrices.append(_matrix(name, rank, plan.storage, tensors))
    return tuple(sorted(matrices, key=lambda item: (item.layer, _place(item.kind))))


def kinds(matrices: Iterable[KeptMatrix]) -> list[str]:
    """List the kinds of matrices in the order in which a layer calls them.

    Args:
        matrices: Matrices.

    Returns:
        Kinds.
    """
    return sorted({item.kind for item in matrices}, key=_place)


def mean_kept(matrices: Sequence[KeptMatrix], field: str) -> dict[Any, float]:
    """Take the mean kept fraction of groups of matrices, each matrix counting alike.

    Args:
        matrices: Matrices.
        field: ``"layer"`` or ``"kind"``.

    Returns:
        Group -> mean.

    Source:
        LLM-Sieve, appendices A.2 and A.3.
    """
    groups: dict[Any, list[float]] = {}
    for item in matrices:
        groups.setdefault(getattr(item, field), []).append(item.kept)
    return {group: sum(values) / len(values) for group, values in groups.items()}


def _matrix(name: str, rank: int | None, storage: str, tensors: Any) -> KeptMatrix:
    layer, kind = name.split(".", 1)
    names = set(tensors.keys())
    # Of a bank whose ranks were fitted each on its own, any tells the features.
    suffix = "" if "down" in names else next(item for item in names if item.startswith("down")).removeprefix("down")
    in_features = tensors.get_slice(f"down{suffix}").get_shape()[1]
    out_features = tensors.get_slice(f"up{suffix}").get_shape()[1]
    most = in_features if storage == "width" else min(in_features, out_features)
    kept = _kept(rank, out_features, in_features, storage)
    return KeptMatrix(int(layer), kind, rank, most, kept, _errors(tensors, names, rank))


def _kept(rank: int | None, out_features: int, in_features: int, storage: str) -> float:
    if rank is None:
        return 1.0
    if rank == SKIPPED:
        return 0.0
    if storage == "width":
        return rank / in_features
    return factored_params(rank, out_features, in_features, storage) / (out_features * in_features)


def _errors(tensors: Any, names: set[str], rank: int | None) -> tuple[tuple[int, float], ...]:
    if "error" in names:
        errors = tensors.get_tensor("error")
        last = len(errors) - 1
        shown = {round(step * last / POINTS) for step in range(POINTS + 1)} | ({rank} if rank else set())
        return tuple((each, float(errors[each])) for each in sorted(shown))
    fitted = sorted(int(name.removeprefix("error.")) for name in names if name.startswith("error."))
    return tuple((each, float(tensors.get_tensor(f"error.{each}")[0])) for each in fitted)


def _place(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)

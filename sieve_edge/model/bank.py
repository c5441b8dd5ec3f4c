"""The projection bank: factors of every matrix, read where they are needed.

Dimension key: O out_features, I in_features, R rank.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sieve_edge.errors import ArtifactError
from sieve_edge.model.tensors import write_tensors

_FACTORS = ("down", "up")


def factors_file(folder: Path, matrix: str) -> Path:
    """Name the file of a matrix.

    Args:
        folder: Artifact of learn.
        matrix: Matrix name.

    Returns:
        Its path.
    """
    return folder / f"{matrix}.safetensors"


def write_nested(
    folder: Path, matrix: str, down_RI: Tensor, up_RO: Tensor, error_R: Tensor, energy: float, found_rank: int
) -> None:
    """Write factors whose first R rows are the projection of rank R, for every R.

    Args:
        folder: Work folder of learn.
        matrix: Matrix name.
        down_RI: (Rmax, I), stored as float32.
        up_RO: (Rmax, O), stored as float32.
        error_R: Relative error at ranks 0 to Rmax, (Rmax + 1,).
        energy: What a relative error of 1 amounts to.
        found_rank: Numerical rank of the statistics.
    """
    facts = {"error": error_R, "energy": _number(energy), "found_rank": torch.tensor([found_rank])}
    _write(factors_file(folder, matrix), {"down": down_RI, "up": up_RO, **facts})


def write_fitted(folder: Path, matrix: str, fits: Mapping[int, tuple[Tensor, Tensor, float]], energy: float) -> None:
    """Write factors that were fitted for each rank on its own.

    Args:
        folder: Work folder of learn.
        matrix: Matrix name.
        fits: Rank -> ``(down (R, I), up (O, R), relative error)``.
        energy: What a relative error of 1 amounts to.
    """
    tensors: dict[str, Tensor] = {"energy": _number(energy)}
    for rank, (down_RI, up_OR, error) in fits.items():
        tensors |= {
            f"down.{rank}": down_RI,
            f"up.{rank}": up_OR.T,
            f"error.{rank}": _number(error),
        }
    _write(factors_file(folder, matrix), tensors)


class ProjectionBank:
    """Projections by matrix and rank, whatever method found them."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder; nothing is read yet.

        Args:
            folder: Artifact of learn.
        """
        self._folder = folder

    def nested(self, matrix: str) -> tuple[Tensor, Tensor] | None:
        """Read the factors of all ranks at once, where the method nests.

        Args:
            matrix: Matrix name.

        Returns:
            ``(down (Rmax, I), up (Rmax, O))``, float32, or None if each rank has a fit of its own.
        """
        with self._open(matrix) as file:
            return (file.get_tensor("down"), file.get_tensor("up")) if "down" in file.keys() else None  # noqa: SIM118

    def at(self, matrix: str, rank: int) -> tuple[Tensor, Tensor]:
        """Read the projection of one rank.

        Args:
            matrix: Matrix name.
            rank: R.

        Returns:
            ``(down (R, I), up (R, O))``, float32, contiguous.

        Raises:
            ArtifactError: If the bank has no projection of this rank.
        """
        with self._open(matrix) as file:
            names = set(file.keys())
            if f"down.{rank}" in names:
                return file.get_tensor(f"down.{rank}"), file.get_tensor(f"up.{rank}")
            if "down" in names and rank <= file.get_slice("down").get_shape()[0]:
                return file.get_slice("down")[:rank], file.get_slice("up")[:rank]
        raise ArtifactError(
            f"the projection bank has no rank {rank} for {matrix}; delete the learn folder and build again"
        )

    def factors(self, matrix: str) -> dict[str, Tensor]:
        """Read all factors of a matrix.

        Args:
            matrix: Matrix name.

        Returns:
            ``down`` and ``up`` of all ranks, or ``down.R`` and ``up.R`` for each rank R that has a fit of its own.
        """
        with self._open(matrix) as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(_FACTORS)}  # noqa: SIM118

    def error(self, matrix: str, rank: int) -> float:
        """Read the relative output error at a rank, in the metric the method minimises.

        Args:
            matrix: Matrix name.
            rank: R.

        Returns:
            Share of the output's energy that is lost, in [0, 1].
        """
        with self._open(matrix) as file:
            if "error" in file.keys():  # noqa: SIM118
                return float(file.get_tensor("error")[rank])
            return float(file.get_tensor(f"error.{rank}")[0])

    def damage(self, matrix: str, rank: int | None) -> float:
        """Read the energy that is lost at a rank.

        Args:
            matrix: Matrix name.
            rank: R, 0 for leaving the matrix out, None for dense.

        Returns:
            Absolute error in the metric the method minimises, comparable between matrices.
        """
        if rank is None:
            return 0.0
        with self._open(matrix) as file:
            energy = float(file.get_tensor("energy")[0])
        return energy if rank == 0 else energy * self.error(matrix, rank)

    def found_rank(self, matrix: str) -> int | None:
        """Read the numerical rank of the statistics behind a matrix.

        Args:
            matrix: Matrix name.

        Returns:
            The rank, or None where each rank has a fit of its own.
        """
        with self._open(matrix) as file:
            return int(file.get_tensor("found_rank")[0]) if "found_rank" in file.keys() else None  # noqa: SIM118

    def _open(self, matrix: str) -> safe_open:
        path = factors_file(self._folder, matrix)
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; delete the learn folder and build again")
        return safe_open(path, framework="pt")


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(
        path, {name: value.float() if name.startswith(_FACTORS) else value for name, value in tensors.items()}
    )

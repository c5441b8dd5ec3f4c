"""The search space: chromosomes, the levels their genes choose from, and what a choice keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.files import digest
from sieve_edge.model.levels import SKIPPED, Ranks, rank_at, stored_params

Chromosome = tuple[int, ...]
"""One gene per matrix, the index of its level (0 dense, rising with pruning); then, where blocks may be skipped, one
gene per block (1 skipped)."""


@dataclass(frozen=True)
class Level:
    """One choice for one matrix.

    Attributes:
        factor: Pruning factor of the grid.
        rank: Rank, None for dense.
        params: Parameters that are stored.
    """

    factor: float
    rank: int | None
    params: int


@dataclass(frozen=True)
class SearchSpace:
    """All chromosomes of one model, grid, storage and rank multiple.

    Attributes:
        specs: Matrices of the model.
        grid: Pruning factors, falling from 1.
        levels: Levels of each matrix.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        other_params: Parameters outside the matrices.
        allow_skip: Whether blocks may be skipped.
    """

    specs: tuple[MatrixSpec, ...]
    grid: tuple[float, ...]
    levels: tuple[tuple[Level, ...], ...]
    storage: str
    other_params: int
    allow_skip: bool = False

    @cached_property
    def linears(self) -> int:
        """Parameters of the dense matrices."""
        return sum(spec.params for spec in self.specs)

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Matrices of each block that may be skipped as a whole: an input projection and what follows it."""
        if not self.allow_skip:
            return ()
        blocks: list[list[int]] = []
        for index, spec in enumerate(self.specs):
            if spec.side == "pre":
                blocks.append([index])
            else:
                blocks[-1].append(index)
        return tuple(map(tuple, blocks))

    @cached_property
    def gene_levels(self) -> tuple[int, ...]:
        """How many levels each gene chooses from."""
        return (*map(len, self.levels), *(2 for _ in self.blocks))

    def ranks(self, chromosome: Chromosome) -> Ranks:
        """Translate a chromosome.

        Args:
            chromosome: Genes.

        Returns:
            Rank of each matrix.
        """
        skipped = self.skipped(chromosome)
        return {
            spec.name: SKIPPED if index in skipped else self.levels[index][chromosome[index]].rank
            for index, spec in enumerate(self.specs)
        }

    def kept(self, spec: MatrixSpec, ranks: Ranks) -> float:
        """Say what a plan keeps of a matrix.

        Args:
            spec: The matrix.
            ranks: The plan.

        Returns:
            Fraction of its parameters.
        """
        return stored_params(spec, ranks[spec.name], self.storage) / spec.params

    def kept_model(self, kept_linears: float) -> float:
        """Say what a plan keeps of the whole model.

        Args:
            kept_linears: What it keeps of the matrices.

        Returns:
            Fraction of all parameters.
        """
        return (self.other_params + kept_linears * self.linears) / (self.other_params + self.linears)

    def uniform(self, factor: float) -> Chromosome:
        """Find the chromosome that is nearest to one factor for all matrices, from below.

        Args:
            factor: Pruning factor.

        Returns:
            For each matrix the first level at or below the factor; the last where there is none.
        """
        genes = [
            next((gene for gene, level in enumerate(choices) if level.factor <= factor), len(choices) - 1)
            for choices in self.levels
        ]
        return (*genes, *(0 for _ in self.blocks))

    def skipped(self, chromosome: Chromosome) -> set[int]:
        """List the matrices of skipped blocks.

        Args:
            chromosome: Genes.

        Returns:
            Their indices.
        """
        flags = chromosome[len(self.specs) :]
        return {index for block, flag in zip(self.blocks, flags, strict=True) if flag for index in block}


def make_space(
    specs: Sequence[MatrixSpec],
    grid: Sequence[float],
    storage: str,
    multiple: int,
    other_params: int,
    allow_skip: bool = False,
) -> SearchSpace:
    """List the levels of every matrix, those that coincide after rounding merged.

    Args:
        specs: Matrices of the model.
        grid: Pruning factors, falling from 1.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        multiple: Ranks are rounded down to a multiple of this.
        other_params: Parameters outside the matrices.
        allow_skip: Whether blocks may be skipped.

    Returns:
        The space.
    """
    levels = tuple(_levels(spec, grid, storage, multiple) for spec in specs)
    return SearchSpace(tuple(specs), tuple(grid), levels, storage, other_params, allow_skip)


def plan_id(ranks: Mapping[str, int | None]) -> str:
    """Name a plan by what it does, so that equal plans have one name whatever found them.

    Args:
        ranks: Rank of each matrix.

    Returns:
        16 hexadecimal digits.
    """
    return digest(dict(ranks))[:16]


def _levels(spec: MatrixSpec, grid: Sequence[float], storage: str, multiple: int) -> tuple[Level, ...]:
    levels: list[Level] = []
    for factor in grid:
        rank = rank_at(spec, factor, storage, multiple)
        if levels and levels[-1].rank == rank:
            levels.pop()
        levels.append(Level(factor, rank, stored_params(spec, rank, storage)))
    return tuple(levels)

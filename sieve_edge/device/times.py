"""The time table: what each matrix costs at each rank, and everything else, on one machine in one runtime."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sieve_edge.errors import ArtifactError

DENSE = "dense"
FEWER_INPUTS, FEWER_OUTPUTS = "fewer_inputs", "fewer_outputs"
"""Storage of a dense matrix that lost features by width pruning; its rank says how many are left."""

Times = tuple[float, float]
"""``(milliseconds of the prompt, milliseconds of one decode step)``."""


@dataclass(frozen=True)
class TimedMatrix:
    """A matrix as a runtime sees it.

    Attributes:
        part_features: Output features of each stacked part.
        in_features: Input features.
        rank: Rank, or features that are left: of the inputs, or of the largest part; None for dense.
        storage: ``"dense"``, ``"pair"``, ``"pivoted_input"``, ``"pivoted_output"``, ``FEWER_INPUTS`` or
            ``FEWER_OUTPUTS``.
    """

    part_features: tuple[int, ...]
    in_features: int
    rank: int | None
    storage: str

    def multiplied(self) -> tuple[tuple[int, ...], int] | None:
        """Say what one multiplication a part computes.

        Returns:
            ``(output features of each part, input features)`` that are left; None for a factored matrix.
        """
        if self.rank is None:
            return self.part_features, self.in_features
        if self.storage == FEWER_INPUTS:
            return self.part_features, self.rank
        if self.storage == FEWER_OUTPUTS:
            largest = max(self.part_features)
            return tuple(features * self.rank // largest for features in self.part_features), self.in_features
        return None

    def rank_or(self, dense: int) -> int:
        """Say how wide the middle is.

        Args:
            dense: What a dense matrix counts for.

        Returns:
            The rank.
        """
        return dense if self.rank is None else self.rank


@dataclass(frozen=True)
class TimeRow:
    """What one matrix costs: milliseconds of a whole prompt, and of one decode step."""

    matrix: TimedMatrix
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class TimeTable:
    """What each matrix and everything else costs on one machine.

    Attributes:
        machine: Processor, cores, and version of the runtime.
        threads: Threads of one operator.
        provider: Execution provider.
        quantization: Type of the stored weights.
        prompt_tokens: Length of the prompt.
        rows: Matrices, dense ones and every rank or width.
        fixed_prefill_ms: Prompt, everything outside the matrices.
        fixed_decode_ms: Decode step, everything outside the matrices.
    """

    machine: Mapping[str, Any]
    threads: int
    provider: str
    quantization: str
    prompt_tokens: int
    rows: tuple[TimeRow, ...]
    fixed_prefill_ms: float
    fixed_decode_ms: float

    @classmethod
    def from_json(cls, value: Any, place: str) -> "TimeTable":
        """Read what ``to_json`` wrote.

        Args:
            value: Parsed JSON.
            place: Where it was, for the error.

        Returns:
            The table.

        Raises:
            ArtifactError: If it is not one.
        """
        try:
            rows = []
            for row in value["rows"]:
                matrix = {**row["matrix"], "part_features": tuple(row["matrix"]["part_features"])}
                rows.append(TimeRow(**{**row, "matrix": TimedMatrix(**matrix)}))
            return cls(**{**value, "rows": tuple(rows)})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{place}: not a time table ({error}); delete it and run the build again") from error

    def to_json(self) -> dict[str, Any]:
        """Turn the table into plain JSON values.

        Returns:
            JSON-compatible dictionary.
        """
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def matrix_ms(self, matrix: TimedMatrix) -> Times:
        """Look a matrix up; a rank between two rows is interpolated, one above all continues the last two.

        Args:
            matrix: The matrix.

        Returns:
            Its times.

        Raises:
            ArtifactError: If the table has no row for such a matrix at any rank.
        """
        if matrix in self._times:
            return self._times[matrix]
        known = sorted(
            (item.rank, times)
            for item, times in self._times.items()
            if item.rank is not None and replace(matrix, rank=item.rank) == item
        )
        if matrix.rank is None or not known:
            raise ArtifactError(f"the time table has no row for {matrix}")
        ranks = [rank for rank, _ in known]
        prefill, decode = (_at(matrix.rank, ranks, [times[kind] for _, times in known]) for kind in (0, 1))
        return prefill, decode

    @cached_property
    def _times(self) -> dict[TimedMatrix, Times]:
        return {row.matrix: (row.prefill_ms, row.decode_ms) for row in self.rows}


def make_table(
    times: Mapping[TimedMatrix, Times],
    dense: Times,
    counts: Mapping[TimedMatrix, int],
    machine: Mapping[str, Any],
    threads: int,
    provider: str,
    quantization: str,
    prompt_tokens: int,
) -> TimeTable:
    """Put what was measured into a table; what the dense model takes beyond its matrices is fixed.

    Args:
        times: Of each matrix.
        dense: Of the whole dense model.
        counts: Dense matrix -> how often the dense model has it.
        machine: Processor, cores, and version of the runtime.
        threads: Threads of one operator.
        provider: Execution provider.
        quantization: Type of the stored weights.
        prompt_tokens: Length of the prompt.

    Returns:
        The table.
    """
    fixed = [dense[kind] - sum(times[matrix][kind] * count for matrix, count in counts.items()) for kind in (0, 1)]
    rows = tuple(TimeRow(matrix, *values) for matrix, values in times.items())
    return TimeTable(dict(machine), threads, provider, quantization, prompt_tokens, rows, fixed[0], fixed[1])


def _at(rank: int, ranks: Sequence[int], values: Sequence[float]) -> float:
    if rank <= ranks[-1] or len(ranks) == 1:
        return float(np.interp(rank, ranks, values))
    slope = (values[-1] - values[-2]) / (ranks[-1] - ranks[-2])
    return max(values[-1] + slope * (rank - ranks[-1]), 0.0)

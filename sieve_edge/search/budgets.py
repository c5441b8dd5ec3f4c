"""What a user may limit beside the accuracy: costs that add up over the matrices of a plan."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.device.times import DENSE, FEWER_INPUTS, FEWER_OUTPUTS, TimedMatrix, TimeTable
from sieve_edge.errors import LimitMissed
from sieve_edge.model.levels import SKIPPED, Ranks, stored_params
from sieve_edge.model.statistics import narrow_side
from sieve_edge.search.sizes import Sizes
from sieve_edge.search.space import SearchSpace

_SLACK = 1e-9
_DIGITS = 4


@dataclass(frozen=True)
class Budget:
    """A cost, and what it may be.

    Attributes:
        name: Setting that asks for it, for example ``"max_params"``.
        each: Cost of a matrix at a rank; None for dense, 0 for left out.
        fixed: Cost of everything else.
        limit: Largest cost allowed.
        unit: Unit of the cost.
    """

    name: str
    each: Callable[[MatrixSpec, int | None], float]
    fixed: float
    limit: float
    unit: str

    def cost(self, specs: Sequence[MatrixSpec], ranks: Ranks) -> float:
        """Add up what a plan costs.

        Args:
            specs: Matrices of the model.
            ranks: The plan.

        Returns:
            The cost, ``fixed`` included.
        """
        return self.fixed + sum(self.each(spec, ranks[spec.name]) for spec in specs)

    def table(self, space: SearchSpace) -> tuple[tuple[float, ...], ...]:
        """List the cost of every choice.

        Args:
            space: Search space.

        Returns:
            Cost of every level of every matrix.
        """
        return tuple(
            tuple(self.each(spec, level.rank) for level in choices)
            for spec, choices in zip(space.specs, space.levels, strict=True)
        )

    def met(self, cost: float) -> bool:
        """Compare a cost with the limit.

        Args:
            cost: Cost of a plan.

        Returns:
            True if it is allowed.
        """
        return cost <= self.limit * (1.0 + _SLACK)

    def least(self, space: SearchSpace) -> float:
        """Say what the cheapest plan of a space costs.

        Args:
            space: Search space.

        Returns:
            Its cost; only ``fixed`` where every block may be left out.
        """
        return self.fixed if space.blocks else self.fixed + sum(map(min, self.table(space)))

    def dense(self, space: SearchSpace) -> float:
        """Say what the dense model costs.

        Args:
            space: Search space.

        Returns:
            Its cost.
        """
        return self.fixed + sum(self.each(spec, None) for spec in space.specs)

    def told(self) -> str:
        """Name the setting and its limit, as a user gave it.

        Returns:
            For example ``"search.max_size_mib 100 MiB"``.
        """
        return f"search.{self.name} {self.limit:.12g} {self.unit}"


def params_budget(name: str, storage: str, each: float, fixed: float, limit: float, unit: str) -> Budget:
    """Limit something that is proportional to the parameters.

    Args:
        name: Setting that asks for it.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        each: Cost of one parameter.
        fixed: Cost of everything else.
        limit: Largest cost allowed.
        unit: Unit of the cost.

    Returns:
        The budget.
    """

    def cost(spec: MatrixSpec, rank: int | None) -> float:
        return stored_params(spec, rank, storage) * each

    return Budget(name, cost, fixed, limit, unit)


def size_budget(sizes: Sizes, limit_mib: float) -> Budget:
    """Limit the size of the weights.

    Args:
        sizes: What weights take on the target.
        limit_mib: Largest size allowed.

    Returns:
        The budget.
    """
    return Budget(
        "max_size_mib", lambda spec, rank: sizes.each(spec, rank) / 2**20, sizes.fixed / 2**20, limit_mib, "MiB"
    )


def first_exceeded(specs: Sequence[MatrixSpec], budgets: Sequence[Budget], ranks: Ranks) -> Budget | None:
    """Find a budget that a plan does not meet.

    Args:
        specs: Matrices of the model.
        budgets: Budgets.
        ranks: The plan.

    Returns:
        The first one exceeded, or None.
    """
    return next((budget for budget in budgets if not budget.met(budget.cost(specs, ranks))), None)


def timed_matrices(spec: MatrixSpec, rank: int | None, storage: str) -> tuple[TimedMatrix, ...]:
    """Describe a matrix as the exported graph computes it.

    Args:
        spec: The matrix.
        rank: Rank, of width pruning the inputs that are left; None for dense.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.

    Returns:
        Rows of a time table: one, or one for its source and one for itself.
    """
    source = spec.source
    if source is None:
        factored = "pair" if storage == "pair" else f"pivoted_{narrow_side(spec)}"
        return (TimedMatrix(spec.part_features, spec.in_features, rank, DENSE if rank is None else factored),)
    left = None if rank is None else rank * max(source.part_features) // spec.in_features
    kinds = (DENSE, DENSE) if rank is None else (FEWER_OUTPUTS, FEWER_INPUTS)
    return (
        TimedMatrix(source.part_features, source.in_features, left, kinds[0]),
        TimedMatrix(spec.part_features, spec.in_features, rank, kinds[1]),
    )


def time_budget(name: str, times: TimeTable, storage: str, prompts: int, steps: int, limit: float) -> Budget:
    """Limit the time of some prompts and decode steps, by a time table.

    Args:
        name: Setting that asks for it.
        times: The table.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
        prompts: How often the prompt is computed.
        steps: How many tokens are decoded.
        limit: Largest time allowed, in ms.

    Returns:
        The budget.
    """

    def together(prefill_ms: float, decode_ms: float) -> float:
        return prompts * prefill_ms + steps * decode_ms

    @cache
    def cost(spec: MatrixSpec, rank: int | None) -> float:
        if rank == SKIPPED:
            return 0.0
        return sum(together(*times.matrix_ms(matrix)) for matrix in timed_matrices(spec, rank, storage))

    return Budget(name, cost, together(times.fixed_prefill_ms, times.fixed_decode_ms), limit, "ms")


def check_reachable(space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Refuse a limit that no plan can meet, before anything is scored.

    Args:
        space: Search space.
        budgets: Budgets.

    Raises:
        LimitMissed: If the cheapest plan of the space costs more than a limit.
    """
    for budget in budgets:
        least = budget.least(space)
        if not budget.met(least):
            raise LimitMissed(
                f"{budget.told()}: the cheapest plan of the grid needs {shown(least)}, "
                f"{max(budget.fixed, 0.0) / least:.0%} of it outside the matrices; raise the limit or extend the grid"
            )


def shown(value: float) -> str:
    """Write a cost for people, rounded up, so that a limit of what is printed is one that can be met.

    Args:
        value: The cost.

    Returns:
        At least four digits.
    """
    decimals = max(_DIGITS - 1 - math.floor(math.log10(value)), 0) if value > 0.0 else 0
    return f"{math.ceil(value * 10**decimals) / 10**decimals:.15g}"

"""What a user may limit beside the accuracy: costs that add up over the matrices of a plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.factored import factored_params
from sieve_edge.model.levels import Ranks
from sieve_edge.search.space import SearchSpace

_SLACK = 1e-9


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


def params_budget(name: str, storage: str, each: float, fixed: float, limit: float, unit: str) -> Budget:
    """Limit something that is proportional to the parameters.

    Args:
        name: Setting that asks for it.
        storage: ``"pair"`` or ``"pivoted"``.
        each: Cost of one parameter.
        fixed: Cost of everything else.
        limit: Largest cost allowed.
        unit: Unit of the cost.

    Returns:
        The budget.
    """

    def cost(spec: MatrixSpec, rank: int | None) -> float:
        if rank is None:
            return spec.params * each
        return factored_params(rank, spec.out_features, spec.in_features, storage) * each

    return Budget(name, cost, fixed, limit, unit)


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

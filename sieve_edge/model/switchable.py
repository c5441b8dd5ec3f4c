"""Candidates of a search: one model whose ranks are integers over shared tensors.

Dimension key: B batch, T tokens, I in_features, O out_features, R rank.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn.functional import linear

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.factored import StackLeader, install_
from sieve_edge.model.levels import SKIPPED, Ranks
from sieve_edge.model.matrices import stacked_bias, stacked_weight


class Bank(Protocol):
    """Where the factors of a candidate come from."""

    def nested(self, matrix: str) -> tuple[Tensor, Tensor] | None:
        """Read the factors of all ranks at once, where the method nests.

        Args:
            matrix: Matrix name.

        Returns:
            ``(down (Rmax, I), up (Rmax, O))``, or None if each rank has a fit of its own.
        """
        ...

    def at(self, matrix: str, rank: int) -> tuple[Tensor, Tensor]:
        """Read the projection of one rank.

        Args:
            matrix: Matrix name.
            rank: R.

        Returns:
            ``(down (R, I), up (R, O))``.
        """
        ...


class SwitchableLinear(StackLeader):
    """A matrix at any rank of its bank, or dense; switching copies nothing."""

    def __init__(self, spec: MatrixSpec, weight_OI: Tensor, bias_O: Tensor | None, bank: Bank) -> None:
        """Share the tensors of the dense matrix and of the bank.

        Args:
            spec: The matrix.
            weight_OI: Dense weight, (O, I).
            bias_O: Dense bias, (O,), or None.
            bank: Its projections.
        """
        super().__init__(spec.in_features, spec.part_features)
        self.spec = spec
        self.name = spec.name
        self.rank: int | None = None
        self._weight_OI = weight_OI
        self.bias_O = bias_O
        self._bank = bank
        self._nested = bank.nested(spec.name)
        self._fitted: dict[int, tuple[Tensor, Tensor]] = {}
        self.refitted: tuple[Tensor, Tensor] | None = None
        if self._nested is not None:
            self._nested = (self._nested[0].to(weight_OI.device), self._nested[1].to(weight_OI.device))

    def switch(self, rank: int | None) -> None:
        """Choose the rank that ``forward`` uses; refitted factors are forgotten.

        Args:
            rank: R, None for the dense matrix, or ``SKIPPED`` for no output at all.
        """
        if rank and self._nested is None and rank not in self._fitted:
            down_RI, up_RO = self._bank.at(self.name, rank)
            self._fitted[rank] = (down_RI.to(self._weight_OI.device), up_RO.to(self._weight_OI.device))
        self.rank = rank
        self.refitted = None

    def factors(self) -> tuple[Tensor, Tensor]:
        """Find the factors that ``forward`` uses.

        Returns:
            ``(down (R, I), up (R, O))`` of the chosen rank.
        """
        if self.refitted is not None:
            return self.refitted
        down_RI, up_RO = self._nested or self._fitted[self.rank or 0]
        return down_RI[: self.rank], up_RO[: self.rank]

    def multiply(self, hidden_BTI: Tensor) -> Tensor:
        """Compute the outputs of the whole stack at the chosen rank.

        Args:
            hidden_BTI: Input, (..., I).

        Returns:
            Output, (..., O).
        """
        if self.rank is None:
            return linear(hidden_BTI, self._weight_OI, self.bias_O)
        if self.rank == SKIPPED:
            return hidden_BTI.new_zeros(*hidden_BTI.shape[:-1], sum(self.part_features))
        down_RI, up_RO = self.factors()
        return linear(linear(hidden_BTI, down_RI), up_RO.T, self.bias_O)


def install_switchable_(model: nn.Module, specs: Sequence[MatrixSpec], bank: Bank) -> list[SwitchableLinear]:
    """Make every matrix of a dense model switchable, in place; at first all are dense.

    Args:
        model: Dense model.
        specs: Its matrices.
        bank: Their projections.

    Returns:
        The switchable matrices, in the order of ``specs``.
    """
    leaders = []
    for spec in specs:
        leader = SwitchableLinear(spec, stacked_weight(model, spec), stacked_bias(model, spec), bank)
        install_(model, spec.paths, leader)
        leaders.append(leader)
    return leaders


def switch_(leaders: Sequence[SwitchableLinear], ranks: Ranks) -> None:
    """Switch a model to a candidate.

    Args:
        leaders: What ``install_switchable_`` returned.
        ranks: Rank of each matrix.
    """
    for leader in leaders:
        leader.switch(ranks[leader.name])

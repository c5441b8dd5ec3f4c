"""Factored and narrow linears.

This file travels inside every checkpoint, so it imports nothing but torch.

Dimension key: B batch, T tokens, I in_features, O out_features of the whole stack, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class StackLeader(nn.Module):
    """Stands where the first part of a stack stood, multiplies for the whole stack, and hands out the parts.

    Subclasses implement ``multiply``. The other parts' places are taken by ``StackPart`` modules.
    """

    def __init__(self, in_features: int, part_features: Sequence[int]) -> None:
        """Remember the shapes.

        Args:
            in_features: I.
            part_features: Output features of each stacked part.
        """
        super().__init__()
        self.in_features = in_features
        self.part_features = tuple(part_features)
        self._pending: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def multiply(self, hidden_BTI: Tensor) -> Tensor:
        """Compute the outputs of the whole stack.

        Args:
            hidden_BTI: Input, (..., I).

        Returns:
            Output, (..., O).

        Raises:
            NotImplementedError: If a subclass does not say how.
        """
        raise NotImplementedError

    def forward(self, hidden_BTI: Tensor) -> Tensor:
        """Multiply once for all parts.

        Args:
            hidden_BTI: Input, (..., I).

        Returns:
            The first part's output, (..., first of ``part_features``).
        """
        output_BTO = self.multiply(hidden_BTI)
        if len(self.part_features) == 1:
            return output_BTO
        parts: tuple[Tensor, ...] = output_BTO.split(self.part_features, dim=-1)
        self._pending = (hidden_BTI, parts)
        return parts[0]

    def take(self, hidden_BTI: Tensor, index: int) -> Tensor:
        """Hand out another part of the product that ``forward`` computed.

        Args:
            hidden_BTI: The very tensor that ``forward`` was given.
            index: Which part, from 1.

        Returns:
            The part, (..., part_features[index]).

        Raises:
            RuntimeError: If the layer does not call the parts in order on one and the same input.
        """
        if self._pending is None or self._pending[0] is not hidden_BTI:
            raise RuntimeError(
                f"part {index} of a factored stack was called before part 0 or with another input; "
                "the architecture file must list parts that read one input, in the order they are called"
            )
        part = self._pending[1][index]
        if index == len(self.part_features) - 1:
            self._pending = None
        return part


class FactoredLinear(StackLeader):
    """A low-rank matrix in place of one linear, or of a stack of linears that read the same input.

    The projection of the input is stored once and multiplied once for the whole stack.

    Storage ``pair`` keeps ``down`` (R, I) and ``up`` (O, R). The pivoted ones keep R * R numbers less: ``R``
    neighbouring columns of ``down`` (``pivoted_input``) or rows of ``up`` (``pivoted_output``) are the identity
    and are not stored. Neighbouring, because then putting rows in order is a slice and not a gather.
    """

    def __init__(
        self,
        in_features: int,
        part_features: Sequence[int],
        rank: int,
        storage: str = "pair",
        pivot_start: int = 0,
        bias: bool = False,
    ) -> None:
        """Make the modules; weights are not initialised to anything useful.

        Args:
            in_features: I.
            part_features: Output features of each stacked part.
            rank: R.
            storage: ``"pair"``, ``"pivoted_input"`` or ``"pivoted_output"``.
            pivot_start: First of the R neighbouring pivots.
            bias: Whether there is a bias over the whole stack.

        Raises:
            ValueError: If the storage is unknown or the pivots do not fit.
        """
        super().__init__(in_features, part_features)
        out_features = sum(part_features)
        if storage not in ("pair", "pivoted_input", "pivoted_output"):
            raise ValueError(f"storage '{storage}' must be pair, pivoted_input or pivoted_output")
        pivoted = {"pivoted_input": in_features, "pivoted_output": out_features}.get(storage)
        if pivoted is not None and not 0 <= pivot_start <= pivoted - rank:
            raise ValueError(f"pivot_start {pivot_start} and rank {rank} exceed {pivoted} features")
        self.rank = rank
        self.storage = storage
        self.pivot_start = pivot_start
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        if rank == 0:
            return
        if storage == "pivoted_input":
            self.coef = nn.Linear(in_features - rank, rank, bias=False)
        else:
            self.down = nn.Linear(in_features, rank, bias=False)
        if storage == "pivoted_output":
            self.coef = nn.Linear(rank, out_features - rank, bias=False)
        else:
            self.up = nn.Linear(rank, out_features, bias=False)

    def multiply(self, hidden_BTI: Tensor) -> Tensor:
        """Compute the outputs of the whole stack.

        Args:
            hidden_BTI: Input, (..., I).

        Returns:
            Output, (..., O).
        """
        if self.rank == 0:
            return hidden_BTI.new_zeros(*hidden_BTI.shape[:-1], sum(self.part_features))
        output_BTO = self.expand(self.project(hidden_BTI))
        return output_BTO if self.bias is None else output_BTO + self.bias

    def project(self, hidden_BTI: Tensor) -> Tensor:
        """Multiply by the first factor.

        Args:
            hidden_BTI: Input, (..., I).

        Returns:
            Projected input, (..., R).
        """
        projected: Tensor
        if self.storage != "pivoted_input":
            projected = self.down(hidden_BTI)
            return projected
        start, stop = self.pivot_start, self.pivot_start + self.rank
        before, pivots, after = hidden_BTI[..., :start], hidden_BTI[..., start:stop], hidden_BTI[..., stop:]
        if start == 0:
            rest = after
        elif stop == self.in_features:
            rest = before
        else:
            rest = torch.cat([before, after], dim=-1)
        projected = pivots + self.coef(rest)
        return projected

    def expand(self, projected_BTR: Tensor) -> Tensor:
        """Multiply by the second factor.

        Args:
            projected_BTR: Projected input, (..., R).

        Returns:
            Output without bias, (..., O).
        """
        if self.storage != "pivoted_output":
            expanded: Tensor = self.up(projected_BTR)
            return expanded
        rest = self.coef(projected_BTR)
        start = self.pivot_start
        if start == 0:
            return torch.cat([projected_BTR, rest], dim=-1)
        if start == rest.shape[-1]:
            return torch.cat([rest, projected_BTR], dim=-1)
        return torch.cat([rest[..., :start], projected_BTR, rest[..., start:]], dim=-1)

    def extra_repr(self) -> str:
        """Describe the module for ``print(model)``.

        Returns:
            Shapes and storage.
        """
        return f"in={self.in_features}, parts={self.part_features}, rank={self.rank}, storage={self.storage}"


class StackPart(nn.Module):
    """A further part of a factored stack: holds nothing, and hands out what its leader computed."""

    in_features = 0
    """It multiplies nothing; a runtime that merges linears which read the same input, as vLLM does, leaves it alone."""

    def __init__(self, leader: StackLeader, index: int) -> None:
        """Remember the leader without owning its parameters.

        Args:
            leader: Module at the stack's first path.
            index: Which part this is, from 1.
        """
        super().__init__()
        self._leader = (leader,)
        self.index = index

    def forward(self, hidden_BTI: Tensor) -> Tensor:
        """Return this part.

        Args:
            hidden_BTI: Input, (..., I).

        Returns:
            This part's output.
        """
        leader: Any = self._leader[0]
        part: Tensor = leader.take(hidden_BTI, self.index)
        return part


def install_(model: nn.Module, paths: Sequence[str], leader: StackLeader) -> None:
    """Put a module in place of a stack of linears.

    Args:
        model: Model that is changed in place.
        paths: Module paths of the stack's parts, in call order.
        leader: Module for the first path; the others get a ``StackPart`` of it.
    """
    model.set_submodule(paths[0], leader)
    for index, path in enumerate(paths[1:], 1):
        model.set_submodule(path, StackPart(leader, index))


def install_narrow_(
    model: nn.Module, paths: Sequence[str], in_features: int, part_features: Sequence[int], bias: bool
) -> list[nn.Linear]:
    """Put empty dense linears of other widths in place of a stack's parts.

    Args:
        model: Model that is changed in place.
        paths: Module paths of the stack's parts.
        in_features: I.
        part_features: Output features of each part.
        bias: Whether the parts have biases.

    Returns:
        The new parts.
    """
    parts = [nn.Linear(in_features, features, bias=bias) for features in part_features]
    for path, part in zip(paths, parts, strict=True):
        model.set_submodule(path, part.requires_grad_(False))
    return parts


def install_layout_(model: nn.Module, layout: Mapping[str, Mapping[str, Any]]) -> None:
    """Put empty linears where a checkpoint has others than its base family.

    Args:
        model: Dense model that is changed in place.
        layout: Matrix name -> ``paths``, ``storage`` and the arguments of ``FactoredLinear``, or with storage
            ``"narrow"`` those of ``install_narrow_``.
    """
    for entry in layout.values():
        if entry.get("storage") == "narrow":
            install_narrow_(model, **{name: value for name, value in entry.items() if name != "storage"})
        else:
            arguments = {name: value for name, value in entry.items() if name != "paths"}
            install_(model, entry["paths"], FactoredLinear(**arguments))

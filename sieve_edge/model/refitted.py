"""The bank of a plan whose factors were refitted: kept by the search, or refitted again for another plan."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from sieve_edge.artifacts import PruningPlan
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.load import LoadedModel, shared_copy
from sieve_edge.model.refit import Refit, refit
from sieve_edge.model.switchable import install_switchable_, switch_


def refit_file(folder: Path, plan_id: str) -> Path:
    """Name the file of a plan's refitted factors.

    Args:
        folder: Artifact of search.
        plan_id: The plan.

    Returns:
        Its path; there is no such file for plans that were not chosen, and where the score came from a cache.
    """
    return folder / f"refit-{plan_id}.safetensors"


class RefittedBank(ProjectionBank):
    """Projections of which some have a refitted second factor."""

    def __init__(self, folder: Path, factors: Mapping[str, Tensor]) -> None:
        """Remember the folder and the factors.

        Args:
            folder: Artifact of learn.
            factors: ``<matrix>.up`` -> (R, O).
        """
        super().__init__(folder)
        self._factors = factors

    def at(self, matrix: str, rank: int) -> tuple[Tensor, Tensor]:
        """Read the projection of one rank.

        Args:
            matrix: Matrix name.
            rank: R of the plan that was refitted.

        Returns:
            ``(down (R, I), up (R, O))``, float32, contiguous.
        """
        down_RI, up_RO = super().at(matrix, rank)
        return down_RI, self._factors.get(f"{matrix}.up", up_RO)


def refitted_bank(
    loaded: LoadedModel,
    learned: Path,
    searched: Path,
    plan: PruningPlan,
    prefix: Sequence[int],
    tails: Sequence[Sequence[Sequence[int]]],
    settings: Refit,
) -> ProjectionBank:
    """Find a plan's projections, refitted where the plan says so.

    Args:
        loaded: Dense model.
        learned: Artifact of learn.
        searched: Artifact of search.
        plan: The plan.
        prefix: Tokens that all prompts of refit share.
        tails: Batches of their other tokens.
        settings: Strengths and token weights.

    Returns:
        The bank. Refit runs again where the search did not keep its factors; the result is the same.
    """
    bank = ProjectionBank(learned)
    if not plan.refit:
        return bank
    file = refit_file(searched, plan.id)
    if file.is_file():
        return RefittedBank(learned, load_file(file))
    model = shared_copy(loaded.model)
    leaders = install_switchable_(model, loaded.specs, bank)
    switch_(leaders, plan.ranks)
    factors = refit(loaded.model, model, leaders, prefix, tails, settings).factors
    # As a bank's file gives them, wherever the model is.
    return RefittedBank(learned, {name: tensor.cpu() for name, tensor in factors.items()})

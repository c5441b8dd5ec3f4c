"""Which inputs a matrix can do without, and its best weights on those that it keeps.

Dimension key: O out_features, I in_features, U units alive, Q inputs of a unit, K inputs alive, D inputs that go.
"""

import torch
from torch import Tensor

from sieve_edge.learn.projections import Factors, check_moment, eye_like, tail

_DAMPING = 1e-3
_ROUNDS = 96
"""Units go in about this many rounds, several at a time, since each round updates both matrices."""


def keep_inputs(weight_OI: Tensor, gram_II: Tensor, metric_II: Tensor, unit: int) -> Factors:
    """Find nested projections that read only R inputs, for every R, with the best second factor for each.

    With H the inverse of the Gram matrix of the inputs that are left, and M the weights' own moment in the output's
    metric, dropping inputs D and refitting the rest costs ``tr(M_DD H_DD^-1)``. Units go where that is least, one
    round after the other. In that order backwards, the Cholesky factor of the Gram matrix gives inputs made
    uncorrelated, the first R of which read the R inputs kept; the regression on them is the second factor.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        gram_II: Mean of ``x x^T``, float64, (I, I).
        metric_II: ``W^T S W``, float64, (I, I).
        unit: Neighbouring inputs that only go together.

    Returns:
        Factors for every rank up to I; those at multiples of ``unit`` keep whole units. Statistics that are zero or
        not finite are a ``CalibrationError``.

    Source:
        Optimal Brain Surgeon for structures: ZipLM, arXiv 2302.04089, section 3.1.
    """
    check_moment(gram_II)
    count = len(gram_II)
    damped_II = gram_II + _DAMPING * gram_II.diagonal().mean() * eye_like(count, gram_II)
    order_I = keep_order(damped_II, metric_II, unit)
    root_II = torch.linalg.cholesky(damped_II[order_I][:, order_I])
    down_RI = torch.zeros_like(damped_II)
    down_RI[:, order_I] = torch.linalg.solve_triangular(root_II, eye_like(count, root_II), upper=False)
    read_RI = down_RI @ damped_II
    energy_R = ((read_RI @ metric_II) * read_RI).sum(1)
    return Factors(down_RI, read_RI @ weight_OI.T, tail(energy_R, count), float(energy_R.sum()), count)


def keep_order(gram_II: Tensor, metric_II: Tensor, unit: int) -> Tensor:
    """Order inputs by how long they should be kept.

    Args:
        gram_II: Positive definite, float64, (I, I).
        metric_II: Positive semi-definite, float64, (I, I).
        unit: Neighbouring inputs that only go together.

    Returns:
        Indices of the inputs, the last to go first; the inputs of a unit stand together, in their own order.
    """
    alive_K = torch.arange(len(gram_II), device=gram_II.device)
    inverse_KK, metric_KK = torch.linalg.inv(gram_II), metric_II
    at_once = max(len(gram_II) // unit // _ROUNDS, 1)
    gone: list[Tensor] = []
    while True:
        cost_U = _costs(inverse_KK, metric_KK, unit)
        units = cost_U.argsort(stable=True)[:at_once]
        going_D = (units[:, None] * unit + torch.arange(unit, device=units.device)).flatten()
        gone += alive_K[going_D].split(unit)
        staying = torch.ones(len(alive_K), dtype=torch.bool, device=alive_K.device)
        staying[going_D] = False
        alive_K = alive_K[staying]
        if not len(alive_K):
            return torch.cat(gone[::-1])
        inverse_KK, metric_KK = _without(inverse_KK, metric_KK, going_D, staying)


def _costs(inverse_KK: Tensor, metric_KK: Tensor, unit: int) -> Tensor:
    if unit == 1:
        return metric_KK.diagonal() / inverse_KK.diagonal()
    costs = []
    # One by one: MKL's batched solve hangs with two threads.
    for start in range(0, len(inverse_KK), unit):
        place = slice(start, start + unit)
        costs.append(torch.linalg.solve(inverse_KK[place, place], metric_KK[place, place]).trace())
    return torch.stack(costs)


def _without(inverse_KK: Tensor, metric_KK: Tensor, going_D: Tensor, staying: Tensor) -> tuple[Tensor, Tensor]:
    """Drop inputs; the others take over what they can of their part."""
    share_DK = torch.linalg.solve(inverse_KK[going_D][:, going_D], inverse_KK[going_D][:, staying])
    left_KK = inverse_KK[staying][:, staying] - inverse_KK[staying][:, going_D] @ share_DK
    crossed_KK = metric_KK[staying][:, going_D] @ share_DK
    moved_KK = metric_KK[staying][:, staying] - crossed_KK - crossed_KK.T
    return left_KK, moved_KK + share_DK.T @ metric_KK[going_D][:, going_D] @ share_DK

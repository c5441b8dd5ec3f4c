"""Factors in a form that trains well: plain pairs whose two sides share the singular values evenly.

A step of training changes every number by about as much, so a factor with large numbers opposite (pivot coefficients,
or the inverse of a metric) turns a small step into a large change of the product.

Dimension key: O out_features, I in_features, R rank.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.pivots import pivot


def balanced(down_RI: Tensor, up_OR: Tensor) -> tuple[Tensor, Tensor]:
    """Rewrite a pair so that both factors have the square roots of the product's singular values.

    Args:
        down_RI: (R, I), any floating dtype.
        up_OR: (O, R).

    Returns:
        ``(down_RI, up_OR)``, float64, of the same product.
    """
    left_OR, left_RR = torch.linalg.qr(up_OR.double())
    right_IR, right_RR = torch.linalg.qr(down_RI.double().T)
    rotation_RR, values_R, other_RR = torch.linalg.svd(left_RR @ right_RR.T)
    root_R = values_R.sqrt()
    return (root_R[:, None] * other_RR) @ right_IR.T, left_OR @ rotation_RR * root_R


@torch.no_grad()
def balance_(model: nn.Module) -> dict[str, str]:
    """Turn every factored matrix into a balanced plain pair, in place.

    Args:
        model: Pruned model.

    Returns:
        Path of each factored matrix -> the storage that it had.
    """
    had = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, FactoredLinear) and module.rank > 0:
            had[path] = module.storage
            _put(module, "pair", 0, *_named(*balanced(*whole_factors(module))))
    return had


@torch.no_grad()
def restore_(model: nn.Module, storages: Mapping[str, str]) -> list[str]:
    """Give matrices the storage back that ``balance_`` found, with the product that they have now, in place.

    Args:
        model: The model.
        storages: From ``balance_``.

    Returns:
        Fallbacks: paths that must stay a plain pair.
    """
    fallbacks = []
    for path, storage in storages.items():
        module: Any = model.get_submodule(path)
        down_RI, up_OR = whole_factors(module)
        side = storage.removeprefix("pivoted_")
        pivoted = None if storage == "pair" else pivot(down_RI, up_OR, side)
        if pivoted is None:
            # Columns of one size cost least where blocks of numbers of one row share a scale.
            norm_R = up_OR.double().norm(dim=0)
            # A column of zeros, where a direction was lost, stays one.
            norm_R = torch.where(norm_R > 0, norm_R, 1.0)
            _put(module, "pair", 0, *_named(norm_R[:, None] * down_RI, up_OR / norm_R))
            if storage != "pair":
                fallbacks.append(f"{path}: no pivots with small coefficients any more, stored as a plain pair")
            continue
        whole = "up" if side == "input" else "down"
        _put(module, storage, pivoted.start, ("coef", pivoted.coef), (whole, pivoted.other))
    return fallbacks


def whole_factors(module: FactoredLinear) -> tuple[Tensor, Tensor]:
    """Read a matrix's factors, whatever its storage.

    Args:
        module: The matrix.

    Returns:
        ``(down_RI, up_OR)``.
    """
    like = next(module.parameters())
    identity_II, identity_RR = (
        torch.eye(size, dtype=like.dtype, device=like.device) for size in (module.in_features, module.rank)
    )
    return module.project(identity_II).T, module.expand(identity_RR).T


def _named(down_RI: Tensor, up_OR: Tensor) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    return ("down", down_RI), ("up", up_OR)


def _put(module: FactoredLinear, storage: str, pivot_start: int, *weights: tuple[str, Tensor]) -> None:
    like = next(module.parameters())
    for name in ("down", "up", "coef"):
        if hasattr(module, name):
            delattr(module, name)
    module.storage, module.pivot_start = storage, pivot_start
    for name, weight in weights:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=like.device, dtype=like.dtype)
        linear.weight.copy_(weight)
        setattr(module, name, linear.eval().requires_grad_(False))

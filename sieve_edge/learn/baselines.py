"""What the closed form is measured against: the paper's gradient descent, LASER's and SliceGPT's projections.

Pure functions on tensors. Dimension key: O out_features, I in_features, R rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sieve_edge.learn.projections import Factors, eye_like

_LEARNING_RATE = 0.1


def weight_svd(weight_OI: Tensor) -> Factors:
    """Truncate the singular value decomposition of the weight; the data do not matter.

    Args:
        weight_OI: Dense weight, float64, (O, I).

    Returns:
        Nested factors; the error is that of the weight.

    Source:
        LASER, arXiv 2312.13558.
    """
    left_OR, values_R, right_RI = torch.linalg.svd(weight_OI, full_matrices=False)
    energy_R = values_R.square()
    kept_R = torch.cat([energy_R.new_zeros(1), energy_R.cumsum(0)])
    error_R = (1.0 - kept_R / energy_R.sum()).clamp(min=0.0)
    return Factors(
        right_RI, (left_OR * values_R).T.contiguous(), error_R, float(energy_R.sum()), int((values_R > 0).sum())
    )


def input_pca(weight_OI: Tensor, gram_II: Tensor, relative_cut: float) -> Factors:
    """Project the input onto its principal components.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        gram_II: ``X X^T``, float64, (I, I).
        relative_cut: Eigenvalues below this fraction of the largest count as zero in ``found_rank``.

    Returns:
        Nested factors; the error is that of the outputs in plain least squares.

    Source:
        SliceGPT, arXiv 2401.15024, its projection.
    """
    values_I, vectors_II = torch.linalg.eigh(gram_II)
    ranks = min(weight_OI.shape)
    basis_IR = vectors_II.flip(1)[:, :ranks]
    up_OR = weight_OI @ basis_IR
    # Eigenvectors make the kept and the lost part orthogonal on the data, so energies add up.
    energy_R = up_OR.square().sum(0) * values_I.flip(0)[:ranks]
    total = ((weight_OI @ gram_II) * weight_OI).sum()
    kept_R = torch.cat([energy_R.new_zeros(1), energy_R.cumsum(0)])
    found = int((values_I > relative_cut * values_I[-1]).sum())
    error_R = (1.0 - kept_R / total).clamp(min=0.0)
    return Factors(basis_IR.T.contiguous(), up_OR.T.contiguous(), error_R, float(total), found)


def gradient_pre(
    weight_OI: Tensor, gram_II: Tensor, rank: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Learn the paper's adaptor before a non-linearity: ``What = W A A^+`` with A (I, R), by gradient descent.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        gram_II: ``X X^T``, float64, (I, I).
        rank: R.
        steps: Steps of Adam.
        generator: Draws the first A.

    Returns:
        ``(down (R, I), up (O, R))``: ``A^+`` and ``W A``.

    Source:
        LLM-Sieve, section 4.1, eq. (4).
    """
    squared_II = weight_OI.T @ weight_OI
    basis_IR = _descend(lambda basis: _projector_loss(basis, squared_II, gram_II), squared_II, rank, steps, generator)
    return basis_IR.T.contiguous(), weight_OI @ basis_IR


def gradient_post(
    weight_OI: Tensor, output_gram_OO: Tensor, rank: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Learn the paper's adaptor after a non-linearity: ``What = A A^+ W`` with A (O, R), by gradient descent.

    Args:
        weight_OI: Dense weight, float64, (O, I).
        output_gram_OO: ``Y Y^T``, float64, (O, O).
        rank: R.
        steps: Steps of Adam.
        generator: Draws the first A.

    Returns:
        ``(down (R, I), up (O, R))``: ``A^+ W`` and ``A``.

    Source:
        LLM-Sieve, section 4.1, eq. (5).
    """
    identity_OO = eye_like(weight_OI.shape[0], weight_OI)
    basis_OR = _descend(
        lambda basis: _projector_loss(basis, identity_OO, output_gram_OO), identity_OO, rank, steps, generator
    )
    return basis_OR.T @ weight_OI, basis_OR


def _projector_loss(basis_DR: Tensor, metric_DD: Tensor, gram_DD: Tensor) -> Tensor:
    """Compute ``tr(M (I - P) G (I - P)) / tr(M G)`` for the projector P on an orthonormal basis."""
    rest_DD = eye_like(len(gram_DD), gram_DD) - basis_DR @ basis_DR.T
    loss: Tensor = ((metric_DD @ rest_DD) * (gram_DD @ rest_DD).T).sum() / (metric_DD * gram_DD).sum()
    return loss


def _descend(
    loss_of: Callable[[Tensor], Tensor], metric_DD: Tensor, rank: int, steps: int, generator: torch.Generator
) -> Tensor:
    """Descend on an unconstrained A; the projector depends only on its span, which QR gives a basis of."""
    # Drawn on the CPU, so that it is the same for every device.
    drawn_DR = torch.randn(len(metric_DD), rank, generator=generator, dtype=torch.float64)
    free_DR = drawn_DR.to(metric_DD.device).requires_grad_(True)
    optimiser = torch.optim.Adam([free_DR], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(torch.linalg.qr(free_DR)[0]).backward()
        optimiser.step()
        schedule.step()
    basis_DR: Tensor = torch.linalg.qr(free_DR.detach())[0]
    return basis_DR

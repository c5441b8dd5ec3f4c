"""Refit: restore the original outputs from the inputs that the pruned model really gives.

One matrix at a time in forward order. Its projection of the input stays; its second factor is fitted anew, by ridge
regression of the dense model's outputs on the projected inputs of the pruned model, towards the factor as it was. How
strongly is chosen on held-out prompts, and a matrix keeps its refit only where it helps there.

Dimension key: N tokens, R rank, O out_features.
Source: method.md, section 4; reduced-rank regression with the projection held fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.matrices import decoder_layers, stacked_bias
from sieve_edge.model.statistics import CalibrationStats
from sieve_edge.model.switchable import SwitchableLinear
from sieve_edge.model.walk import WalkBatch, run_layer, start_walk

_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_HELD_OUT = 5
"""Every fifth batch is held out."""


@dataclass(frozen=True)
class Refit:
    """Settings of refit.

    Attributes:
        strengths: Ridge strengths to choose from, as fractions of each direction's own energy.
        weights: Matrix name -> weight of a prompt's last token and of any other token.
    """

    strengths: tuple[float, ...]
    weights: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def refit_settings(stats: CalibrationStats, specs: Sequence[MatrixSpec], gradient_weight: float) -> Refit:
    """Take the token weights from calibration.

    Args:
        stats: Calibration statistics.
        specs: Matrices of the model.
        gradient_weight: Share in which a token weighs as much as the gradient at its output.

    Returns:
        Settings with the default strengths.
    """
    return Refit(_STRENGTHS, {spec.name: stats.token_weights(spec.name, gradient_weight) for spec in specs})


class Sums(NamedTuple):
    """What a regression needs of the data, float64: ``Z^T Z`` (R, R), ``Z^T Y`` (R, O) and ``||Y||^2``."""

    gram_RR: Tensor
    cross_RO: Tensor
    energy: float


class Refitted(NamedTuple):
    """What refit did: one record per matrix, the new factors by tensor name, and the tokens that were forwarded."""

    records: list[dict[str, Any]]
    factors: dict[str, Tensor]
    tokens: float


def ridge(sums: Sums, start_RO: Tensor, strength: float) -> Tensor:
    """Regress towards a start.

    Args:
        sums: Sums over the data.
        start_RO: What the solution is drawn to, float64, (R, O).
        strength: Ridge as a fraction of each direction's energy.

    Returns:
        The minimiser of ``||Y - Z U||^2 + strength * ||D^{1/2} (U - start)||^2``, D the diagonal of ``Z^T Z``.
    """
    pull_R = strength * sums.gram_RR.diagonal().clamp(min=1e-12 * float(sums.gram_RR.diagonal().max()))
    solution_RO: Tensor = torch.linalg.solve(sums.gram_RR + pull_R.diag(), sums.cross_RO + pull_R[:, None] * start_RO)
    return solution_RO


def lost(sums: Sums, up_RO: Tensor) -> float:
    """Measure the relative squared error of a factor.

    Args:
        sums: Sums over the data.
        up_RO: Factor, float64, (R, O).

    Returns:
        ``||Y - Z U||^2 / ||Y||^2``.
    """
    fitted = (up_RO * (sums.gram_RR @ up_RO)).sum() - 2.0 * (up_RO * sums.cross_RO).sum()
    return float(1.0 + fitted / max(sums.energy, 1e-300))


@torch.inference_mode()
def refit(
    dense: Any,
    pruned: Any,
    leaders: Sequence[SwitchableLinear],
    prefix: Sequence[int],
    tails: Sequence[Sequence[Sequence[int]]],
    settings: Refit,
) -> Refitted:
    """Refit a switchable model in place, at the ranks it is switched to.

    Costs one pass of the dense model over the prompts, one of the pruned model, and parts of further ones.

    Args:
        dense: Dense model.
        pruned: Switchable copy of it.
        leaders: The copy's matrices; those that were refitted have ``refitted`` set.
        prefix: Tokens that all prompts share; empty for none.
        tails: Batches of the prompts' other tokens; those of a batch have one length.
        settings: Strengths and token weights.

    Returns:
        What was done.
    """
    batches = start_walk(dense, prefix, tails)
    tokens = sum(batch.hidden_BTD.shape[0] * batch.hidden_BTD.shape[1] for batch in batches)
    hidden = [[batch.hidden_BTD for batch in batches] for _ in range(2)]
    done = Refitted([], {}, 0.0)
    passes = 0.0
    layers = list(zip(decoder_layers(dense), decoder_layers(pruned), strict=True))
    for index, (dense_layer, pruned_layer) in enumerate(layers):
        mine = [leader for leader in leaders if leader.spec.layer == index]
        outputs: dict[str, list[Tensor]] = {leader.name: [] for leader in mine}
        handles = [handle for leader in mine for handle in _watch(dense, leader.spec, outputs[leader.name])]
        try:
            hidden[0] = run_layer(dense_layer, index, batches, hidden[0])
        finally:
            for handle in handles:
                handle.remove()
        total = sum(leader.spec.params for leader in mine)
        before = 0
        for leader in mine:
            if leader.rank:
                inputs = run_layer(pruned_layer, index, batches, hidden[1], until=leader)
                record, up_RO = _refit_one(leader, inputs, outputs[leader.name], batches, settings)
                done.records.append(record)
                if up_RO is not None:
                    leader.refitted = (leader.factors()[0], up_RO)
                    done.factors[f"{leader.name}.up"] = up_RO
                passes += before / total
            outputs.pop(leader.name)
            before += leader.spec.params
        hidden[1] = run_layer(pruned_layer, index, batches, hidden[1])
        passes += 2.0
    return done._replace(tokens=tokens * passes / len(layers))


def _refit_one(
    leader: SwitchableLinear,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    batches: Sequence[WalkBatch],
    settings: Refit,
) -> tuple[dict[str, Any], Tensor | None]:
    down_RI, start_RO = leader.factors()
    weights = settings.weights.get(leader.name, (1.0, 1.0))
    held_out = [index for index in range(len(batches)) if index % _HELD_OUT == 1]
    others = [index for index in range(len(batches)) if index % _HELD_OUT != 1]
    fitting, held = (_sums(down_RI, inputs, outputs, batches, weights, rows) for rows in (others, held_out))
    start = start_RO.double()
    before = best = lost(held, start)
    chosen: tuple[float, Tensor] | None = None
    for strength in settings.strengths:
        candidate = ridge(fitting, start, strength)
        loss = lost(held, candidate)
        if loss < best:
            best, chosen = loss, (strength, candidate)
    record = {"matrix": leader.name, "before": before, "after": best, "ridge": chosen[0] if chosen else None}
    return record, chosen[1].float().contiguous() if chosen else None


def _sums(
    down_RI: Tensor,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    batches: Sequence[WalkBatch],
    weights: tuple[float, float],
    wanted: Sequence[int],
) -> Sums:
    """Sum over the batches wanted; products of a batch in float32, sums in float64."""
    rank, features = len(down_RI), outputs[0].shape[-1]
    gram_RR = torch.zeros(rank, rank, dtype=torch.float64, device=down_RI.device)
    cross_RO = torch.zeros(rank, features, dtype=torch.float64, device=down_RI.device)
    energy = 0.0
    for index in wanted:
        input_BTI, output_BTO, batch = inputs[index], outputs[index], batches[index]
        weight_BT1 = torch.full((*input_BTI.shape[:2], 1), weights[1] * batch.count, device=down_RI.device)
        if batch.ends:
            weight_BT1[:, -1] = weights[0]
        projected_NR = (input_BTI @ down_RI.T).flatten(0, 1)
        weighed_NR = projected_NR * weight_BT1.flatten(0, 1)
        gram_RR += weighed_NR.T @ projected_NR
        cross_RO += weighed_NR.T @ output_BTO.flatten(0, 1)
        energy += float((output_BTO.square() * weight_BT1).sum(dtype=torch.float64))
    return Sums(gram_RR, cross_RO, energy)


def _watch(dense: Any, spec: MatrixSpec, outputs: list[Tensor]) -> list[Any]:
    """Collect a dense stack's outputs without bias, a tensor (B, T, O) for each batch."""
    modules = [dense.get_submodule(path) for path in spec.paths]
    bias_O = stacked_bias(dense, spec)
    parts: list[Tensor] = []

    def collect(_: Any, __: Any, output: Tensor) -> None:
        parts.append(output)
        if len(parts) == len(modules):
            stacked = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            outputs.append(stacked if bias_O is None else stacked - bias_O)
            parts.clear()

    return [module.register_forward_hook(collect) for module in modules]

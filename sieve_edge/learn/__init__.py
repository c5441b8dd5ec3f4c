"""Stage: the projections of every matrix, from its weight and its statistics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.learn.baselines import gradient_post, gradient_pre, input_pca, weight_svd
from sieve_edge.learn.projections import Factors, damped, project_input_side, project_output_side, relative_error
from sieve_edge.learn.widths import keep_inputs
from sieve_edge.model.bank import ProjectionBank, factors_file, write_fitted, write_nested
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.matrices import stacked_weight
from sieve_edge.model.statistics import CalibrationStats, narrow_side
from sieve_edge.progress import Progress
from sieve_edge.recipe import LearnRecipe


def learn(
    loaded: LoadedModel,
    stats: CalibrationStats,
    recipe: LearnRecipe,
    ranks: Mapping[str, Sequence[int]],
    seed: int,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Find the projections of every matrix.

    Reads the weights and calibrate's statistics; writes one file per matrix to ``out``. May be interrupted: it goes
    on at the matrix that was not finished. Costs one or two eigen-decompositions per matrix (closed form).

    Args:
        loaded: Dense model.
        stats: Its statistics.
        recipe: Method and metric.
        ranks: Matrix name -> ranks wanted; only ``gradient`` needs them, since it fits each on its own.
        seed: Seed of the gradient method's first adaptors.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        Metrics for the manifest.
    """
    with progress.task("learn projections", len(loaded.specs), "matrices") as advance:
        for index, spec in enumerate(loaded.specs):
            if not factors_file(out, spec.name).is_file():
                weight_OI = stacked_weight(loaded.model, spec).double().cpu()
                if recipe.method == "gradient":
                    generator = torch.Generator().manual_seed(seed * 100_003 + index)
                    fits = {
                        rank: fit_gradient(spec, weight_OI, stats, rank, recipe, generator) for rank in ranks[spec.name]
                    }
                    write_fitted(out, spec.name, fits, output_energy(spec, weight_OI, stats))
                else:
                    factors = nested_factors(spec, weight_OI, stats, recipe)
                    facts = (factors.error_R, factors.energy, factors.found_rank)
                    write_nested(out, spec.name, factors.down_RI, factors.up_RO, *facts)
            advance(1)
    bank = ProjectionBank(out)
    found = {spec.name: bank.found_rank(spec.name) for spec in loaded.specs}
    full = {spec.name: min(spec.in_features, spec.out_features) for spec in loaded.specs}
    deficient = {name: rank for name, rank in found.items() if rank is not None and rank < full[name]}
    return {"method": recipe.method, "matrices": len(loaded.specs), "rank_deficient": deficient}


def nested_factors(spec: MatrixSpec, weight_OI: Tensor, stats: CalibrationStats, recipe: LearnRecipe) -> Factors:
    """Find the factors of one matrix by a method that nests.

    Args:
        spec: The matrix.
        weight_OI: Its dense weight, float64, (O, I).
        stats: Its statistics.
        recipe: Method and metric.

    Returns:
        Factors for every rank.
    """
    if recipe.method == "weight_svd":
        return weight_svd(weight_OI)
    if recipe.method == "input_pca":
        return input_pca(weight_OI, stats.gram(spec.name, "input"), recipe.relative_cut)
    side = narrow_side(spec)
    share = recipe.gradient_weight if recipe.output_metric == "fisher" else 0.0
    gram_DD = stats.weighted_gram(spec.name, side, share)
    identity_DD = weight_OI.T @ weight_OI if side == "input" else torch.eye(spec.out_features, dtype=torch.float64)
    metric_DD = identity_DD
    if recipe.output_metric == "fisher":
        moment_DD, trace = stats.fisher(spec.name)
        metric_DD = damped(moment_DD, identity_DD, trace, spec.out_features, recipe.fisher_damping)
    if spec.source is not None:
        return keep_inputs(weight_OI, gram_DD, metric_DD, spec.unit)
    project = project_input_side if side == "input" else project_output_side
    return project(weight_OI, gram_DD, metric_DD, recipe.relative_cut)


def output_energy(spec: MatrixSpec, weight_OI: Tensor, stats: CalibrationStats) -> float:
    """Sum the squares of a matrix's outputs over the calibration tokens.

    Args:
        spec: The matrix.
        weight_OI: Its dense weight, float64, (O, I).
        stats: Its statistics.

    Returns:
        ``||W X||^2``.
    """
    gram_DD = stats.gram(spec.name, narrow_side(spec))
    if narrow_side(spec) == "output":
        return float(gram_DD.trace())
    return float(((weight_OI @ gram_DD) * weight_OI).sum())


def fit_gradient(
    spec: MatrixSpec,
    weight_OI: Tensor,
    stats: CalibrationStats,
    rank: int,
    recipe: LearnRecipe,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, float]:
    """Fit the paper's adaptor of one matrix at one rank.

    Args:
        spec: The matrix.
        weight_OI: Its dense weight, float64, (O, I).
        stats: Its statistics.
        rank: R.
        recipe: Steps.
        generator: Draws the first adaptor.

    Returns:
        ``(down (R, I), up (O, R), relative output error)``.
    """
    if narrow_side(spec) == "input":
        gram_II = stats.gram(spec.name, "input")
        down_RI, up_OR = gradient_pre(weight_OI, gram_II, rank, recipe.gradient_steps, generator)
        return down_RI, up_OR, relative_error(weight_OI, up_OR @ down_RI, gram_II)
    gram_OO = stats.gram(spec.name, "output")
    down_RI, up_OR = gradient_post(weight_OI, gram_OO, rank, recipe.gradient_steps, generator)
    identity_OO = torch.eye(spec.out_features, dtype=torch.float64)
    return down_RI, up_OR, relative_error(identity_OO, up_OR @ up_OR.T, gram_OO)

"""Stage: the projections of every matrix, from its weight and its statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.learn.baselines import gradient_post, gradient_pre, input_pca, weight_svd
from sieve_edge.learn.projections import (
    Factors,
    damped,
    eye_like,
    project_input_side,
    project_output_side,
    relative_error,
)
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
    devices: Sequence[str] = ("cpu",),
) -> dict[str, Any]:
    """Find the projections of every matrix.

    Reads the weights and calibrate's statistics; writes one file per matrix to ``out``. May be interrupted: it goes
    on at the matrices that were not finished. Costs one or two eigen-decompositions per matrix (closed form).

    Args:
        loaded: Dense model.
        stats: Its statistics.
        recipe: Method and metric.
        ranks: Matrix name -> ranks wanted; only ``gradient`` needs them, since it fits each on its own.
        seed: Seed of the gradient method's first adaptors.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.
        devices: Torch devices; matrices are dealt out to them in turn, so that each always goes to the same one.

    Returns:
        Metrics for the manifest.
    """

    def learn_one(index: int, device: str) -> None:
        spec = loaded.specs[index]
        if not factors_file(out, spec.name).is_file():
            _learn_matrix(loaded, spec, stats, recipe, ranks, seed * 100_003 + index, device, out)

    with progress.task("learn projections", len(loaded.specs), "matrices") as advance:
        for _ in _deal(learn_one, len(loaded.specs), devices):
            advance(1)
    bank = ProjectionBank(out)
    found = {spec.name: bank.found_rank(spec.name) for spec in loaded.specs}
    full = {spec.name: min(spec.in_features, spec.out_features) for spec in loaded.specs}
    deficient = {name: rank for name, rank in found.items() if rank is not None and rank < full[name]}
    return {"method": recipe.method, "matrices": len(loaded.specs), "rank_deficient": deficient}


def _learn_matrix(
    loaded: LoadedModel,
    spec: MatrixSpec,
    stats: CalibrationStats,
    recipe: LearnRecipe,
    ranks: Mapping[str, Sequence[int]],
    seed: int,
    device: str,
    out: Path,
) -> None:
    """Find and write the projections of one matrix; what is written does not depend on the device's kind."""
    weight_OI = stacked_weight(loaded.model, spec).double().to(device)
    if recipe.method == "gradient":
        generator = torch.Generator().manual_seed(seed)
        fits = {rank: fit_gradient(spec, weight_OI, stats, rank, recipe, generator) for rank in ranks[spec.name]}
        write_fitted(out, spec.name, fits, output_energy(spec, weight_OI, stats))
        return
    factors = nested_factors(spec, weight_OI, stats, recipe)
    facts = (factors.error_R, factors.energy, factors.found_rank)
    write_nested(out, spec.name, factors.down_RI, factors.up_RO, *facts)


def _deal(work: Callable[[int, str], None], count: int, devices: Sequence[str]) -> Iterator[None]:
    """Do numbered work on devices side by side, one thread a device; a single one takes this thread."""
    if len(devices) == 1:
        for index in range(count):
            work(index, devices[0])
            yield
        return
    pools = [ThreadPoolExecutor(1) for _ in devices]
    try:
        asked = [pools[index % len(pools)].submit(work, index, devices[index % len(pools)]) for index in range(count)]
        for done in as_completed(asked):
            done.result()
            yield
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


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
        return input_pca(weight_OI, stats.gram(spec.name, "input").to(weight_OI.device), recipe.relative_cut)
    side = narrow_side(spec)
    share = recipe.gradient_weight if recipe.output_metric == "fisher" else 0.0
    gram_DD = stats.weighted_gram(spec.name, side, share).to(weight_OI.device)
    identity_DD = weight_OI.T @ weight_OI if side == "input" else eye_like(spec.out_features, weight_OI)
    metric_DD = identity_DD
    if recipe.output_metric == "fisher":
        moment_DD, trace = stats.fisher(spec.name)
        metric_DD = damped(moment_DD.to(weight_OI.device), identity_DD, trace, spec.out_features, recipe.fisher_damping)
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
    gram_DD = stats.gram(spec.name, narrow_side(spec)).to(weight_OI.device)
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
        gram_II = stats.gram(spec.name, "input").to(weight_OI.device)
        down_RI, up_OR = gradient_pre(weight_OI, gram_II, rank, recipe.gradient_steps, generator)
        return down_RI, up_OR, relative_error(weight_OI, up_OR @ down_RI, gram_II)
    gram_OO = stats.gram(spec.name, "output").to(weight_OI.device)
    down_RI, up_OR = gradient_post(weight_OI, gram_OO, rank, recipe.gradient_steps, generator)
    identity_OO = eye_like(spec.out_features, weight_OI)
    return down_RI, up_OR, relative_error(identity_OO, up_OR @ up_OR.T, gram_OO)

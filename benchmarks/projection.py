"""How much output each projection loses, on the real model's statistics: ``python -m benchmarks.projection``.

Relative output error ``||(W - What) X||^2 / ||W X||^2`` of the four methods at plain-pair ranks for three factors,
pre- and post-nonlinear matrices apart, with the bound: the tail of the singular values of ``W G^{1/2}``.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import finish, load_demo, options
from sieve_edge.artifacts import MatrixSpec
from sieve_edge.calibrate.grams import GRAM_BATCH_TOKENS, gather_prefix, run_with_answers
from sieve_edge.learn.baselines import gradient_post, gradient_pre, input_pca, weight_svd
from sieve_edge.learn.projections import project_input_side, project_output_side, relative_error, roots
from sieve_edge.model.levels import rank_for
from sieve_edge.model.matrices import stacked_weight
from sieve_edge.model.statistics import Moments
from sieve_edge.task.likelihood import prefix_and_tails

FACTORS = (0.9, 0.5, 0.25)
CUT = 1e-12

Approximation = Callable[[int], Tensor]


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    last = max(_layer(spec) for spec in demo.loaded.specs)
    layers = {(last + 1) * share // 4 - (share == 4) for share in ((2,) if arguments.quick else range(5))}
    specs = [spec for spec in demo.loaded.specs if _layer(spec) in layers]
    moments = Moments()
    sides = {spec.name: () for spec in demo.loaded.specs} | {spec.name: ("input",) for spec in specs}
    prompts = demo.prompts("calibration", 60 if arguments.quick else 280)
    prefix, batches = prefix_and_tails(prompts, GRAM_BATCH_TOKENS)
    past = gather_prefix(demo.loaded, sides, moments, prefix, len(prompts), "cpu")
    for batch in batches:
        run_with_answers(demo.loaded, sides, moments, past, batch, demo.task.max_new_tokens, demo.ended, "cpu")
    grams = moments.full()
    steps = 100 if arguments.quick else 300
    samples = [
        sample
        for spec in specs
        for sample in measure(
            spec, stacked_weight(demo.loaded.model, spec).double(), grams[f"gram.{spec.name}.input"], steps
        )
    ]
    finish("projection", demo, arguments, started, summarise(samples))


def measure(spec: MatrixSpec, weight_OI: Tensor, gram_II: Tensor, steps: int) -> list[dict[str, Any]]:
    """Measure every method on one matrix.

    Args:
        spec: The matrix.
        weight_OI: Its weight, float64, (O, I).
        gram_II: Its input's Gram matrix, float64, (I, I).
        steps: Steps of the gradient method.

    Returns:
        One row for each method and factor.
    """
    root_II, _, _ = roots(gram_II, CUT)
    energy_R = torch.linalg.svdvals(weight_OI @ root_II).square()
    samples = []
    for method in ("closed_form", "gradient", "weight_svd", "input_pca"):
        for factor in FACTORS:
            rank = rank_for(factor, spec.out_features, spec.in_features, "pair", 1)
            assert rank is not None  # noqa: S101 (a pair below factor 1 always has a rank here)
            begun = time.perf_counter()
            approximate_OI = approximate(method, spec, weight_OI, gram_II, rank, steps)
            samples.append(
                {
                    "side": spec.side,
                    "factor": factor,
                    "method": method,
                    "error": relative_error(weight_OI, approximate_OI, gram_II),
                    "bound": float(energy_R[rank:].sum() / energy_R.sum()),
                    "seconds": time.perf_counter() - begun,
                }
            )
    return samples


def approximate(method: str, spec: MatrixSpec, weight_OI: Tensor, gram_II: Tensor, rank: int, steps: int) -> Tensor:
    """Approximate a matrix at one rank.

    Args:
        method: Which method.
        spec: The matrix.
        weight_OI: Its weight, float64, (O, I).
        gram_II: Its input's Gram matrix, float64, (I, I).
        rank: R.
        steps: Steps of the gradient method.

    Returns:
        The approximation, float64, (O, I).
    """
    generator = torch.Generator().manual_seed(0)
    if method == "gradient":
        if spec.side == "pre":
            down_RI, up_OR = gradient_pre(weight_OI, gram_II, rank, steps, generator)
        else:
            output_gram_OO = weight_OI @ gram_II @ weight_OI.T
            down_RI, up_OR = gradient_post(weight_OI, output_gram_OO, rank, steps, generator)
        return up_OR @ down_RI
    if method == "closed_form" and spec.side == "pre":
        factors = project_input_side(weight_OI, gram_II, weight_OI.T @ weight_OI, CUT)
    elif method == "closed_form":
        identity_OO = torch.eye(spec.out_features, dtype=torch.float64)
        factors = project_output_side(weight_OI, weight_OI @ gram_II @ weight_OI.T, identity_OO, CUT)
    else:
        factors = weight_svd(weight_OI) if method == "weight_svd" else input_pca(weight_OI, gram_II, CUT)
    return factors.up_RO[:rank].T @ factors.down_RI[:rank]


def _layer(spec: MatrixSpec) -> int:
    return int(spec.name.split(".", 1)[0])


def summarise(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over matrices.

    Args:
        samples: Rows of ``measure``.

    Returns:
        One row for each side, factor and method: mean error, mean bound, error over bound, mean seconds a matrix.
    """
    rows = []
    keys = sorted({(item["side"], -item["factor"], item["method"]) for item in samples})
    for side, negative, method in keys:
        mine = [item for item in samples if (item["side"], -item["factor"], item["method"]) == (side, negative, method)]
        error, bound, seconds = (sum(item[name] for item in mine) / len(mine) for name in ("error", "bound", "seconds"))
        row = {"side": side, "factor": -negative, "method": method, "matrices": len(mine)}
        rows.append({**row, "error": error, "bound": bound, "error/bound": error / bound, "seconds": seconds})
    return rows


if __name__ == "__main__":
    main()

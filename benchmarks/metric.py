"""What the closed form minimises, and refit: ``python -m benchmarks.metric``.

Plain least squares, the Fisher metric of the answer, the same with tokens weighed by their gradient, and that refitted:
from the statistics of a finished calibrate stage (made first if it is missing), at equal parameters. KL divergence of
the next-token distribution (full vocabulary, dense || pruned, in nats) and balanced accuracy, on calibration examples
that neither the statistics nor refit saw.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Demo, finish, finished_run, load_demo, options
from sieve_edge.learn import learn
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.levels import kept_params, ranks_at
from sieve_edge.model.load import shared_copy
from sieve_edge.model.matrices import linear_params
from sieve_edge.model.refit import refit as refit_
from sieve_edge.model.refit import refit_settings
from sieve_edge.model.statistics import CalibrationStats
from sieve_edge.model.switchable import install_switchable_, switch_
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.likelihood import prefix_and_tails

VARIANTS: dict[str, dict[str, Any]] = {
    "identity": {"output_metric": "identity", "gradient_weight": 0.0},
    "fisher": {"gradient_weight": 0.0},
    "fisher, tokens by gradient": {},
}
REFIT_PROMPTS = 300


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    run = finished_run(demo, "calibrate")
    stats = CalibrationStats(run.folder("calibrate"))
    unseen = 100 if arguments.quick else 300
    rows = []
    for name, changes in VARIANTS.items():
        recipe = demo.recipe.learn.model_copy(update=changes)
        with tempfile.TemporaryDirectory() as folder:
            learn(demo.loaded, stats, recipe, {}, 0, Path(folder), run.progress)
            factors = (0.6,) if arguments.quick else (0.75, 0.6, 0.5)
            for factor in factors:
                refits = (False, True) if recipe.gradient_weight > 0.0 else (False,)
                rows += [
                    _measure(demo, ProjectionBank(Path(folder)), stats, name, factor, unseen, refit=refit)
                    for refit in refits
                ]
    finish("metric", demo, arguments, started, rows)


def _measure(
    demo: Demo, bank: ProjectionBank, stats: CalibrationStats, name: str, factor: float, unseen: int, *, refit: bool
) -> dict[str, Any]:
    specs, storage = demo.loaded.specs, demo.target.storage
    ranks = ranks_at(specs, factor, storage, demo.target.rank_multiple)
    pruned = shared_copy(demo.loaded.model)
    leaders = install_switchable_(pruned, specs, bank)
    switch_(leaders, ranks)
    if refit:
        settings = refit_settings(stats, specs, demo.recipe.learn.gradient_weight)
        batches = prefix_and_tails(demo.prompts("calibration", REFIT_PROMPTS), demo.recipe.search.batch_tokens)
        refit_(demo.loaded.model, pruned, leaders, *batches, settings)
    examples = demo.splits["calibration"][-unseen:]
    prompts = [demo.loaded.encode(example.prompt) for example in examples]
    divergences = [_divergence(demo.loaded.model, pruned, prompt) for prompt in prompts[:100]]
    exam = Examiner(demo.task).exam(examples, demo.loaded.backend, demo.loaded.ends)
    answers = exam.take(TorchTextModel(pruned, "cpu"), demo.recipe.search.batch_tokens)
    return {
        "metric": name,
        "refit": refit,
        "factor": factor,
        "kept": kept_params(specs, ranks, storage) / linear_params(specs),
        "KL": float(np.mean(divergences)),
        "unseen accuracy": exam.grade(answers).score,
        "examples": unseen,
    }


@torch.inference_mode()
def _divergence(dense: Any, pruned: Any, prompt: list[int]) -> float:
    ids_1T = torch.tensor([prompt])
    log_dense_V, log_pruned_V = (_last(model, ids_1T) for model in (dense, pruned))
    return float((log_dense_V.exp() * (log_dense_V - log_pruned_V)).sum())


def _last(model: Any, ids_1T: Tensor) -> Tensor:
    last: Tensor = model(ids_1T, logits_to_keep=1).logits[0, -1].double().log_softmax(-1)
    return last


if __name__ == "__main__":
    main()

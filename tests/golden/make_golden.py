"""Makes golden.json: ``python -m tests.golden.make_golden``. Values that must not drift unnoticed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sieve_edge.learn.projections import damped, project_input_side, project_output_side
from sieve_edge.model.levels import rank_for
from sieve_edge.task.evaluate import fit_prior, grade_labels, loss_interval, score_interval

FILE = Path(__file__).parent / "golden.json"


def values() -> dict[str, Any]:
    """Compute every golden value."""
    rng = np.random.default_rng(7)
    weight = torch.from_numpy(rng.normal(size=(24, 16)))
    data = torch.from_numpy(rng.normal(size=(16, 16)) @ rng.normal(size=(16, 80)))
    gradients = torch.from_numpy(rng.normal(size=(24, 6)))
    gram, fisher = data @ data.T, gradients @ gradients.T
    trace = float(fisher.trace())
    metric_in = damped(weight.T @ fisher @ weight, weight.T @ weight, trace, 24, 0.3)
    metric_out = damped(fisher, torch.eye(24, dtype=torch.float64), trace, 24, 0.3)
    labels = rng.permutation(np.arange(200) % 2)
    scores = rng.normal(size=(200, 2)) + np.eye(2)[labels] + [0.8, 0.0]
    worse = scores + rng.normal(size=(200, 2))
    prior = fit_prior(scores, labels)
    dense, pruned = grade_labels(scores, labels, prior), grade_labels(worse, labels, prior)
    return {
        "fisher_error_input_side": project_input_side(weight, gram, metric_in, 1e-12).error_R.tolist(),
        "fisher_error_output_side": project_output_side(
            weight, weight @ gram @ weight.T, metric_out, 1e-12
        ).error_R.tolist(),
        "prior": prior.tolist(),
        "accuracy_interval": score_interval(dense, np.random.default_rng(0)),
        "loss_interval": loss_interval(dense, pruned, np.random.default_rng(0)),
        "ranks": [
            rank_for(factor, 960, 576, storage, 16)
            for storage in ("pair", "pivoted")
            for factor in (0.9, 0.75, 0.5, 0.05)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(values(), indent=1) + "\n", encoding="utf-8")

"""What a candidate of the search costs: ``python -m benchmarks.candidates``.

Switches per second, and scoring tokens per second at factor 0.5 against the dense model's plain forward pass over the
same token ids, in turn. The bank is drawn at random: speed does not depend on the values.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks._common import Demo, finish, load_demo, options
from sieve_edge.model.bank import ProjectionBank, write_nested
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.levels import ranks_at
from sieve_edge.model.load import shared_copy
from sieve_edge.model.switchable import install_switchable_, switch_
from sieve_edge.task.examiner import label_ids
from sieve_edge.task.likelihood import label_log_likelihoods, length_batches, pad_left

FACTOR = 0.5


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    prompts = demo.prompts("selection", 30 if arguments.quick else 400)
    with tempfile.TemporaryDirectory() as folder:
        bank = _random_bank(demo, Path(folder))
        rows = [_measure(demo, bank, prompts, storage) for storage in ("pair", "pivoted")]
    finish("candidates", demo, arguments, started, rows)


def _random_bank(demo: Demo, folder: Path) -> ProjectionBank:
    generator = torch.Generator().manual_seed(0)
    for spec in demo.loaded.specs:
        full = min(spec.in_features, spec.out_features)
        down_RI = torch.randn(full, spec.in_features, generator=generator) / full
        up_RO = torch.randn(full, spec.out_features, generator=generator) / full
        write_nested(folder, spec.name, down_RI, up_RO, torch.zeros(full + 1, dtype=torch.float64), 1.0, full)
    return ProjectionBank(folder)


def _measure(demo: Demo, bank: ProjectionBank, prompts: list[list[int]], storage: str) -> dict[str, object]:
    model = shared_copy(demo.loaded.model)
    leaders = install_switchable_(model, demo.loaded.specs, bank)
    ranks = ranks_at(demo.loaded.specs, FACTOR, storage, demo.target.rank_multiple)
    begun = time.perf_counter()
    for _ in range(200):
        switch_(leaders, ranks)
    switches = 200 / (time.perf_counter() - begun)
    tokens = sum(len(prompt) for prompt in prompts)
    plain, uncached, cached = [], [], []
    for _ in range(3):
        plain.append(_plain_forward(demo, prompts))
        uncached.append(_score(demo, model, prompts, share_prefix=False))
        cached.append(_score(demo, model, prompts, share_prefix=True))
    base = float(np.median(plain))
    return {
        "storage": storage,
        "factor": FACTOR,
        "switches/s": switches,
        "dense tokens/s": tokens / base,
        "scored tokens/s": tokens / float(np.median(uncached)),
        "of dense": base / float(np.median(uncached)),
        "of dense, shared prefix": base / float(np.median(cached)),
    }


def _score(demo: Demo, model: torch.nn.Module, prompts: list[list[int]], *, share_prefix: bool) -> float:
    begun = time.perf_counter()
    answers = label_ids(demo.task, demo.loaded.encode)
    label_log_likelihoods(
        TorchTextModel(model, "cpu"), prompts, answers, demo.recipe.search.batch_tokens, None, share_prefix
    )
    return time.perf_counter() - begun


def _plain_forward(demo: Demo, prompts: list[list[int]]) -> float:
    model = TorchTextModel(demo.loaded.model, "cpu")
    begun = time.perf_counter()
    for rows in length_batches([len(prompt) for prompt in prompts], demo.recipe.search.batch_tokens):
        ids_BT, mask_BT, positions_BT = pad_left([prompts[row] for row in rows], 0)
        model.forward(ids_BT, mask_BT, positions_BT, [], 1)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

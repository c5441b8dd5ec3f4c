"""Prompts run after their cached prefix add to the Fisher matrices what whole prompts add after it."""

import numpy as np
import pytest
import torch

from sieve_edge.calibrate import fishers
from sieve_edge.model.flat import run_prefix
from sieve_edge.model.load import load_model
from sieve_edge.model.source import find_model
from sieve_edge.model.statistics import Moments
from sieve_edge.model.watch import watch_fishers
from sieve_edge.task.divergence import Answered

PREFIX, TAILS = [5, 9, 11, 20, 31, 17], [[40, 41, 42], [43, 44, 45], [46, 47, 48]]


def gather(loaded, prompts, past, weights):
    moments = Moments()
    answers = torch.tensor([7, 8])
    prompts = [Answered(tuple(prompt), 1) for prompt in prompts]
    with watch_fishers(loaded.model, loaded.specs, moments, weights):
        fishers._answer_loss(loaded, prompts, past, answers, torch.Generator().manual_seed(0), "cpu").backward()
    return moments.full()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_a_cached_prefix_changes_nothing_after_it(pico, family):
    loaded = load_model(find_model(str(pico(family))), "cpu")
    whole = [PREFIX + tail for tail in TAILS]
    after = torch.ones(3, 9)
    after[:, : len(PREFIX)] = 0.0
    expected = gather(loaded, whole, [], after)
    found = gather(loaded, TAILS, run_prefix(loaded.model, PREFIX, "cpu"), torch.ones(3, 3))
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert scale > 0.0, name
        assert float((found[name] - value).abs().max()) < 1e-4 * scale, name


def test_every_position_of_a_written_answer_is_drawn_and_padding_is_not(pico):
    loaded = load_model(find_model(str(pico("llama"))), "cpu")
    nothing = torch.empty(0, dtype=torch.int64)

    def loss(answered, seed):
        generator = torch.Generator().manual_seed(seed)
        return fishers._answer_loss(loaded, answered, [], nothing, generator, "cpu").item()

    # The mean over many draws is the sum of the entropies at the answer's positions, whatever stands beside a row.
    rows = [Answered((*PREFIX, 7, 8, 9), 3), Answered((*PREFIX, 5), 1)]
    expected = 0.0
    for row in rows:
        with torch.inference_mode():
            log = loaded.model(torch.tensor([row.ids])).logits[0, -row.answer_tokens :].log_softmax(-1)
        expected += float(-(log.exp() * log).sum())
    drawn = [loss(rows, seed) for seed in range(300)]
    error = np.std(drawn) / len(drawn) ** 0.5
    assert abs(np.mean(drawn) - expected) < 4 * error


def test_the_prefix_of_a_part_stands_for_all():
    weights = fishers._weights([[1, 2, 3, 4, 5], [1, 2, 3, 4]], 2, 8.0)
    # Rows stand at the right; padding, which has no gradient, counts as it likes.
    assert weights.tolist() == [[8.0, 8.0, 1.0, 1.0, 1.0], [1.0, 8.0, 8.0, 1.0, 1.0]]
    batches = fishers._batches([9] * 20, 6)
    whole = [row for skipped, rows in batches if skipped == 0 for row in rows]
    others = [row for skipped, rows in batches if skipped == 6 for row in rows]
    assert (whole, sorted(whole + others)) == ([0, 8, 16], list(range(20)))
    assert fishers._batches([9] * 3, 0) == [(0, [0, 1, 2])], "without a shared prefix all run whole"

"""Label likelihoods against brute force: batches, shared prefix, several label tokens, sliding windows."""

import numpy as np
import pytest
import torch

from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import load_model
from sieve_edge.model.source import find_model
from sieve_edge.task.likelihood import PREFIX_TOLERANCE, SHARED_PREFIX_TOKENS, label_log_likelihoods

FAMILIES = ("llama", "mistral", "gemma3_text", "gpt2")
ANSWERS = [[5], [6, 7, 8], [6, 9]]


def brute_force(model, prompt, answer):
    """Score one label alone: no padding, no cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) + step - 1, token]) for step, token in enumerate(answer))


@pytest.fixture(scope="module")
def load(pico):
    return lambda family: load_model(find_model(str(pico(family))), "cpu").model


def prompts(shared, seed=0):
    rng = np.random.default_rng(seed)
    prefix = rng.integers(3, 30, shared).tolist()
    return [prefix + rng.integers(3, 30, length).tolist() for length in (4, 1, 9, 6, 2)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [0, SHARED_PREFIX_TOKENS + 4])
def test_batched_cached_scores_equal_brute_force(load, family, shared):
    model = load(family)
    texts = prompts(shared)
    scores = label_log_likelihoods(TorchTextModel(model, "cpu"), texts, ANSWERS, batch_tokens=64)
    expected = [[brute_force(model, prompt, answer) for answer in ANSWERS] for prompt in texts]
    assert scores == pytest.approx(np.array(expected), abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_prefix_changes_no_score_beyond_the_stated_tolerance(load, family):
    model = TorchTextModel(load(family), "cpu")
    texts = prompts(SHARED_PREFIX_TOKENS)
    cached = label_log_likelihoods(model, texts, ANSWERS, 64)
    uncached = label_log_likelihoods(model, texts, ANSWERS, 64, share_prefix=False)
    assert np.abs(cached - uncached).max() <= PREFIX_TOLERANCE


class Counting(TorchTextModel):
    calls: list[tuple[int, ...]]

    def forward(self, input_ids, *rest):
        self.calls.append(input_ids.shape)
        return super().forward(input_ids, *rest)


@pytest.mark.parametrize(("shared", "cached"), [(SHARED_PREFIX_TOKENS - 1, False), (SHARED_PREFIX_TOKENS, True)])
def test_a_prefix_is_cached_only_from_its_least_length_on(load, shared, cached):
    model = Counting(load("llama"), "cpu")
    model.calls = []
    texts = [[*prompt[:shared], 1 + index, *prompt[shared:]] for index, prompt in enumerate(prompts(shared))]
    label_log_likelihoods(model, texts, [[5], [6]], 1024)
    widths = [shape[1] for shape in model.calls]
    lengths = sorted(len(text) for text in texts)
    assert widths == ([shared, *[length - shared for length in lengths]] if cached else lengths)


def test_progress_counts_every_prompt(load):
    told = []
    label_log_likelihoods(TorchTextModel(load("llama"), "cpu"), prompts(0), ANSWERS, 16, told.append)
    assert sum(told) == 5
    assert len(told) > 1

"""What tuning runs over, and its losses.

Dimension key: B batch, T tokens, K answer tokens of the longest answer, V vocabulary, N examples, L labels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from sieve_edge.model.flat import flat_forward, run_prefix
from sieve_edge.model.load import LoadedModel
from sieve_edge.protocols import Float64, Int64
from sieve_edge.recipe import Recipe
from sieve_edge.task.evaluate import fit_prior
from sieve_edge.task.examples import Example
from sieve_edge.task.likelihood import length_batches, shared_prefix
from sieve_edge.task_config import Task

_NONE = -100
_TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-8, 17))


class Batch(NamedTuple):
    """Examples of one length: inputs (B, T), and what their last K positions should answer (B, K), -100 for nothing."""

    ids_BT: Tensor
    targets_BK: Tensor


class Batches(NamedTuple):
    """Tokens that all prompts begin with, and batches of what follows."""

    prefix: list[int]
    batches: list[Batch]


def make_batches(prompts: Sequence[list[int]], answers: Sequence[list[int]], batch_tokens: int, device: str) -> Batches:
    """Group examples by length, so that nothing is padded.

    Args:
        prompts: Token ids of each prompt.
        answers: Token ids of each right answer.
        batch_tokens: Tokens of one batch.
        device: Torch device.

    Returns:
        Prefix and batches, the shortest first.
    """
    shared = shared_prefix(prompts)
    rows = [prompt[shared:] + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    batches = []
    for indices in length_batches([len(row) for row in rows], batch_tokens, mixed=False):
        longest = max(len(answers[index]) for index in indices)
        padded = [[_NONE] * (longest - len(answers[index])) + answers[index] for index in indices]
        ids_BT = torch.tensor([rows[index] for index in indices], device=device)
        batches.append(Batch(ids_BT, torch.tensor(padded, device=device)))
    return Batches(prompts[0][:shared], batches)


def answer_ending(loaded: LoadedModel, task: Task) -> list[int]:
    """Say what follows a right answer, so that a tuned model ends its answers where they are cut.

    Args:
        loaded: Dense model, whose tokenizer is used.
        task: The task.

    Returns:
        Token ids: none after a label; the task's first stop string after a written answer; the model's own end in a
        chat, or where there is no such string.
    """
    if not task.writes:
        return []
    if task.stop and not task.messages:
        return loaded.encode(task.stop[0], special=False)
    return list(loaded.ends[:1])


def right_answers(loaded: LoadedModel, examples: Sequence[Example], ending: Sequence[int], recipe: Recipe) -> Batches:
    """Put prompts with their right answers into batches.

    Args:
        loaded: Dense model, whose tokenizer is used.
        examples: Examples.
        ending: Token ids that follow every answer.
        recipe: Tokens of a batch, device.

    Returns:
        The batches.
    """
    return make_batches(
        [loaded.encode(example.prompt) for example in examples],
        [[*loaded.encode(example.answer, special=False), *ending] for example in examples],
        recipe.tune.batch_tokens,
        recipe.main_device,
    )


def step_batches(sizes: Sequence[int], examples: int, epochs: float, seed: int) -> list[list[int]]:
    """Say which batches each step is made of: a random order in every epoch, and about as many examples in every step.

    Args:
        sizes: Examples of each batch.
        examples: Examples of a step, at least; the last one of an epoch takes what is left.
        epochs: Passes over all examples; of the last one a part.
        seed: Seed of the orders.

    Returns:
        Indices of batches, of each step.
    """
    steps: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        first, count, wanted = len(steps), 0, min(epochs - epoch, 1.0) * sum(sizes)
        step: list[int] = []
        for index in np.random.default_rng([seed, epoch]).permutation(len(sizes)):
            if count >= wanted:
                break
            count += sizes[index]
            step.append(int(index))
            if sum(sizes[one] for one in step) >= examples:
                steps.append(step)
                step = []
        if len(steps) == first:
            steps.append(step)
        else:
            steps[-1] += step
    return steps


def answer_logits(model: Any, prefix: Sequence[int], batch: Batch) -> Tensor:
    """Run a batch; gradients flow through the shared prefix too.

    Args:
        model: transformers model.
        prefix: Tokens that come before every row.
        batch: The batch.

    Returns:
        Logits at the answer positions, float32, (B, K, V).
    """
    rows, width = batch.ids_BT.shape
    device = batch.ids_BT.device
    past = [tensor.expand(rows, *tensor.shape[1:]) for tensor in run_prefix(model, prefix, str(device))]
    mask_BT = torch.ones(rows, len(prefix) + width, dtype=torch.int64, device=device)
    positions_BT = torch.arange(len(prefix), len(prefix) + width, device=device).expand(rows, -1)
    logits_BKV, _ = flat_forward(model, batch.ids_BT, mask_BT, positions_BT, past, batch.targets_BK.shape[1])
    return logits_BKV.float()


def answer_loss(logits_BKV: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the right answers' tokens.

    Args:
        logits_BKV: Logits at the answer positions.
        batch: The batch.

    Returns:
        Mean over tokens, in nats.
    """
    return cross_entropy(logits_BKV.flatten(0, 1), batch.targets_BK.flatten(), ignore_index=_NONE)


@torch.no_grad()
def mean_answer_loss(model: Any, batches: Batches) -> float:
    """Cross-entropy of the right answers' tokens over many batches.

    Args:
        model: transformers model.
        batches: Prompts with their right answers.

    Returns:
        Mean over tokens, in nats.
    """
    total, tokens = 0.0, 0
    for batch in batches.batches:
        count = int((batch.targets_BK != _NONE).sum())
        total += count * float(answer_loss(answer_logits(model, batches.prefix, batch), batch))
        tokens += count
    return total / tokens


def distillation_loss(logits_BKV: Tensor, dense_BKV: Tensor, batch: Batch) -> Tensor:
    """KL divergence from the dense model's distributions at the answer positions.

    Args:
        logits_BKV: The tuned model's logits.
        dense_BKV: The dense model's.
        batch: The batch.

    Returns:
        Mean over positions, in nats.
    """
    wanted_BK = batch.targets_BK != _NONE
    pair = (logits_BKV[wanted_BK].log_softmax(-1), dense_BKV[wanted_BK].log_softmax(-1))
    return kl_div(*pair, reduction="batchmean", log_target=True)


def label_loss(scores_NL: Float64, labels_N: Int64) -> float:
    """Cross-entropy of the labels after prior correction and at the best temperature: a smooth stand-in for accuracy.

    Training makes a model surer long before it makes it worse, which costs cross-entropy and no accuracy; the
    temperature takes that out.

    Args:
        scores_NL: Label log-likelihoods.
        labels_N: True labels.

    Returns:
        Mean over examples, in nats.
    """
    return min(_cross_entropy(scores_NL / temperature, labels_N) for temperature in _TEMPERATURES)


def _cross_entropy(scores_NL: Float64, labels_N: Int64) -> float:
    corrected_NL = scores_NL + fit_prior(scores_NL, labels_N)
    top_N1 = corrected_NL.max(1, keepdims=True)
    normaliser_N = top_N1[:, 0] + np.log(np.exp(corrected_NL - top_N1).sum(1))
    return float((normaliser_N - corrected_NL[np.arange(len(labels_N)), labels_N]).mean())

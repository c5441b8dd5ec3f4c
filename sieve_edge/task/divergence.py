"""How far a pruned model's answer is from the dense model's, by the whole distribution; numpy only.

KL divergence over the full vocabulary, dense || pruned, at the answer's positions, teacher-forced on the dense model's
own greedy answer. Unlike an accuracy it needs no labels and few prompts.

Dimension key: B batch, T tokens, A answer positions, V vocabulary.
Source: method.md, section 6.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sieve_edge.protocols import Float32, Int64, TextModel
from sieve_edge.task.generate import Ended, answer_greedily
from sieve_edge.task.likelihood import length_batches, pad_left, shared_prefix


@dataclass(frozen=True)
class Answered:
    """A prompt with the dense model's answer.

    Attributes:
        ids: Tokens of the prompt and of the answer but its last.
        answer_tokens: A, so that the last A positions predict the answer.
    """

    ids: tuple[int, ...]
    answer_tokens: int


def with_answers(
    model: TextModel, prompts: Sequence[Sequence[int]], new_tokens: int, ended: Ended, batch_tokens: int
) -> list[Answered]:
    """Let the dense model answer.

    Args:
        model: Dense model.
        prompts: Token ids of each prompt.
        new_tokens: Most tokens of an answer.
        ended: Whether an answer is complete.
        batch_tokens: Tokens of one batch.

    Returns:
        The prompts with their answers; the token that ended an answer is its last.
    """
    if new_tokens == 1:
        return [Answered(tuple(prompt), 1) for prompt in prompts]
    answers = answer_greedily(model, prompts, new_tokens, ended, batch_tokens)
    return [Answered((*prompt, *answer[:-1]), len(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def answer_distributions(
    model: TextModel, answered: Sequence[Answered], batch_tokens: int
) -> Iterator[tuple[list[int], Float32]]:
    """Compute the next-token distributions at every answer position, batch by batch, in a fixed order.

    Args:
        model: Any model.
        answered: Prompts with answers.
        batch_tokens: Tokens of one batch.

    Yields:
        ``(rows, log-probabilities (B, A, V))``; rows of a batch have one length and one A.
    """
    shared = shared_prefix([item.ids[: len(item.ids) - item.answer_tokens] for item in answered])
    past: list[object] = []
    if shared:
        ids_1T: Int64 = np.asarray([answered[0].ids[:shared]], dtype=np.int64)
        _, past = model.forward(ids_1T, np.ones_like(ids_1T), np.arange(shared, dtype=np.int64)[None], [], 1)
    for count in sorted({item.answer_tokens for item in answered}):
        mine = [row for row, item in enumerate(answered) if item.answer_tokens == count]
        lengths = [len(answered[row].ids) - shared for row in mine]
        for batch in length_batches(lengths, batch_tokens, mixed=False):
            rows = [mine[index] for index in batch]
            ids_BT, mask_BT, positions_BT = pad_left([answered[row].ids[shared:] for row in rows], shared)
            repeated = model.repeat(past, len(rows)) if past else []
            logits_BAV, _ = model.forward(ids_BT, mask_BT, positions_BT, repeated, count)
            yield rows, _log_softmax(logits_BAV)


def divergence(model: TextModel, dense: Sequence[Float32], answered: Sequence[Answered], batch_tokens: int) -> float:
    """Compare a model with the dense one.

    Args:
        model: Pruned model.
        dense: Log-probabilities (B, A, V) of each batch of ``answer_distributions`` of the dense model.
        answered: Prompts with answers.
        batch_tokens: Tokens of one batch, as for ``dense``.

    Returns:
        Mean KL divergence per answer position, in nats.
    """
    total, positions = 0.0, 0
    batches = answer_distributions(model, answered, batch_tokens)
    for dense_BAV, (_, pruned_BAV) in zip(dense, batches, strict=True):
        total += float((np.exp(dense_BAV) * (dense_BAV - pruned_BAV)).sum(dtype=np.float64))
        positions += dense_BAV.shape[0] * dense_BAV.shape[1]
    return total / positions


def _log_softmax(logits_BAV: Float32) -> Float32:
    shifted = logits_BAV - logits_BAV.max(-1, keepdims=True)
    normalised: Float32 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised

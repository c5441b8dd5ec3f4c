"""Answers that a model writes greedily, in whatever runtime; numpy only.

Dimension key: B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from sieve_edge.protocols import Int64, Progress, TextModel
from sieve_edge.task.likelihood import length_batches, pad_left, shared_prefix

Ended = Callable[[list[int]], bool]
"""Says of the tokens of an answer whether it is complete."""


@dataclass(frozen=True)
class Ending:
    """When an answer is complete, and what it says.

    Attributes:
        tokenizer: The model's tokenizer.
        ends: Tokens that end an answer.
        stop: Strings that end an answer.
    """

    tokenizer: Tokenizer
    ends: tuple[int, ...]
    stop: tuple[str, ...] = ()

    def reached(self, ids: list[int]) -> bool:
        """Say whether an answer is complete.

        Args:
            ids: Its tokens so far.

        Returns:
            True after a token that ends it or a stop string.
        """
        return ids[-1] in self.ends or any(stop in self._plain(ids) for stop in self.stop)

    def text(self, ids: list[int]) -> str:
        """Turn an answer's tokens into text.

        Args:
            ids: Token ids.

        Returns:
            The text up to what ended it, without space around it.
        """
        written = self._plain(ids[:-1] if ids and ids[-1] in self.ends else ids)
        for stop in self.stop:
            written = written.partition(stop)[0]
        return written.strip()

    def _plain(self, ids: list[int]) -> str:
        # With special tokens, since one may be a stop string.
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


def answer_greedily(
    model: TextModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    ended: Ended,
    batch_tokens: int,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Let a model answer, always with the most likely token.

    Prompts of one length are run together, what all prompts begin with once. Runtimes differ in the last bits of a
    logit, so that where the two most likely tokens are that close, so may the rest of the answer.

    Args:
        model: Model in any runtime.
        prompts: Token ids of each prompt.
        new_tokens: Most tokens of an answer.
        ended: Whether an answer is complete.
        batch_tokens: Tokens of one batch.
        progress: Told how many prompts were just answered.

    Returns:
        Token ids of each answer; the token that ended it is its last.
    """
    shared = shared_prefix(prompts)
    past: list[object] = []
    if shared:
        ids_1T = np.asarray([prompts[0][:shared]], dtype=np.int64)
        _, past = model.forward(ids_1T, np.ones_like(ids_1T), np.arange(shared, dtype=np.int64)[None], [], 1)
    answers: list[list[int]] = [[] for _ in prompts]
    # A batch grows by its answers.
    lengths = [len(prompt) - shared + new_tokens for prompt in prompts]
    for rows in length_batches(lengths, batch_tokens, mixed=False):
        tails = pad_left([prompts[row][shared:] for row in rows], shared)
        # Not kept in a name: the copies of one batch are gone before those of the next are made.
        written = _answer_batch(model, tails, model.repeat(past, len(rows)) if past else [], new_tokens, ended)
        for row, answer in zip(rows, written, strict=True):
            answers[row] = answer
        if progress:
            progress(len(rows))
    return answers


def _answer_batch(
    model: TextModel, tails: tuple[Int64, Int64, Int64], past: list[object], new_tokens: int, ended: Ended
) -> list[list[int]]:
    ids_BT, mask_BT, positions_BT = tails
    answers: list[list[int]] = [[] for _ in ids_BT]
    open_rows = set(range(len(answers)))
    while True:
        logits_B1V, past = model.forward(ids_BT, mask_BT, positions_BT, past, 1)
        # A row that has ended runs along with the others; what it says is not heard.
        ids_BT = logits_B1V[:, -1].argmax(-1).astype(np.int64)[:, None]
        for row in sorted(open_rows):
            answers[row].append(int(ids_BT[row, 0]))
            if len(answers[row]) == new_tokens or ended(answers[row]):
                open_rows.discard(row)
        if not open_rows:
            return answers
        mask_BT = np.concatenate([mask_BT, np.ones_like(ids_BT)], axis=1)
        positions_BT = positions_BT[:, -1:] + 1

"""Completes prompts token by token on any runtime, with what OpenAI's API asks for; numpy only.

Dimension key: V vocabulary.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sieve_edge.protocols import TextModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_tokens: Most tokens of a completion.
        temperature: 0 for the most likely token.
        top_p: Share of the probability that tokens are drawn from, the likeliest first.
        top: How many of the likeliest tokens are told of each position.
        bias: Token -> what is added to its logit.
        seed: Seed of what is drawn; None for another draw each time.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class LabelPrior:
    """What corrects a model's liking for a label, where the labels begin to differ.

    Attributes:
        after: Tokens that all labels begin with.
        bias: Token of each label that comes next -> what is added to its logit.
    """

    after: tuple[int, ...]
    bias: Mapping[int, float]

    def at(self, prompt: Sequence[int], written: Sequence[int]) -> Mapping[int, float]:
        """Find the correction of one position.

        Args:
            prompt: Tokens of the prompt; a client that scores labels may have put in it what all begin with.
            written: Tokens of the completion so far.

        Returns:
            Token -> what is added to its logit; empty elsewhere than where labels begin to differ. Where nothing is
            common to all, a client's prompt that ends with a label's first token cannot be told from one that happens
            to: the bias is added there too, to what may be tokens of another label.
        """
        count = len(self.after)
        if len(written) > count:
            return {}
        before = (*prompt, *written) if count else tuple(written)
        return self.bias if before[len(before) - count :] == self.after else {}


@dataclass(frozen=True)
class Step:
    """One token of a completion.

    Attributes:
        token: The token.
        log_likelihood: Natural logarithm of its probability, after corrections.
        top: The likeliest tokens with theirs, the likeliest first.
    """

    token: int
    log_likelihood: float
    top: tuple[tuple[int, float], ...]


def label_prior(answer_ids: Sequence[Sequence[int]], prior: Sequence[float]) -> LabelPrior | None:
    """Turn the bias of each label into one of tokens.

    Args:
        answer_ids: Token ids of each label.
        prior: Bias of each label; empty for none.

    Returns:
        The correction; None if there can be none, where labels of different bias go on with one token. What they differ
        by would have to be added further on, and there it depends on the prompt how much of it remains.
    """
    if not prior:
        return LabelPrior((), {})
    common = 0
    while len({tuple(ids[: common + 1]) for ids in answer_ids}) == 1:
        common += 1
    bias: dict[int, float] = {}
    for ids, each in zip(answer_ids, prior, strict=True):
        if bias.setdefault(ids[common], float(each)) != float(each):
            return None
    return LabelPrior(tuple(answer_ids[0][:common]), bias)


def complete(
    model: TextModel, prompt: Sequence[int], sampling: Sampling, prior: LabelPrior, ends: Collection[int]
) -> Iterator[Step]:
    """Complete a prompt.

    Args:
        model: Model in any runtime.
        prompt: Token ids, at least one.
        sampling: How tokens are chosen.
        prior: Correction of label tokens.
        ends: Tokens that end a completion; they are yielded too.

    Yields:
        Tokens as they come.
    """
    rng = np.random.default_rng(sampling.seed)
    ids_1T = np.asarray([prompt], dtype=np.int64)
    past: list[object] = []
    written: list[int] = []
    while len(written) < sampling.max_tokens:
        seen = len(prompt) + len(written)
        positions_1T = np.arange(seen - ids_1T.shape[1], seen, dtype=np.int64)[None]
        logits_11V, past = model.forward(ids_1T, np.ones((1, seen), dtype=np.int64), positions_1T, past, 1)
        logits_V = logits_11V[0, -1].astype(np.float64)
        for token, bias in (*prior.at(prompt, written).items(), *sampling.bias.items()):
            logits_V[token] += bias
        step = _choose(logits_V, sampling, rng)
        yield step
        if step.token in ends:
            return
        written.append(step.token)
        ids_1T = np.asarray([[step.token]], dtype=np.int64)


def _choose(logits_V: NDArray[np.float64], sampling: Sampling, rng: np.random.Generator) -> Step:
    log_V = _log_softmax(logits_V)
    token = int(log_V.argmax())
    if sampling.temperature > 0:
        token = _draw(_log_softmax(logits_V / sampling.temperature), sampling.top_p, rng)
    likeliest = np.argsort(-log_V, kind="stable")[: sampling.top]
    return Step(token, float(log_V[token]), tuple((int(each), float(log_V[each])) for each in likeliest))


def _draw(log_V: NDArray[np.float64], top_p: float, rng: np.random.Generator) -> int:
    order = np.argsort(-log_V, kind="stable")
    probability = np.exp(log_V[order])
    # The token that reaches the share is still in.
    kept = int(np.searchsorted(np.cumsum(probability), top_p)) + 1
    chosen = rng.choice(order[:kept], p=probability[:kept] / probability[:kept].sum())
    return int(chosen)


def _log_softmax(logits_V: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits_V - logits_V.max()
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalised

"""Log-likelihoods of labels from what a server tells of each position, in the forms that servers have."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from sieve_edge.errors import TaskError

OUTSIDE = -1e9
"""Log-likelihood of a label that the server does not tell; lower than any that is."""

FORCING_BIAS = 100.0
"""``logit_bias`` that makes a server write a token; the largest that OpenAI's API takes."""

_UNREACHED = -9999.0
"""What servers tell of a token that is not among those they looked at; infinities and null mean the same."""

_TOLD_BEFORE_BIAS = 1.0


@dataclass(frozen=True)
class Told:
    """One position of an answer.

    Attributes:
        token: Text of the token that was written.
        value: Its log-likelihood.
        top: Text of each told token, the written one among them -> log-likelihood.
    """

    token: str
    value: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Piece:
    """A token of a label.

    Attributes:
        text: What it adds to the prompt.
        token: Its id.
        forms: Texts under which a server may tell it.
    """

    text: str
    token: int
    forms: frozenset[str]


@dataclass(frozen=True)
class Found:
    """What a server says of one label.

    Attributes:
        score: Log-likelihood of its tokens, added; ``OUTSIDE`` where one of them is not told.
        outside: Whether a token was not among the told ones.
        begun: Whether the told ones hold its beginning.
    """

    score: float
    outside: bool
    begun: bool = False


Ask = Callable[[str, Mapping[int, float]], Told | None]
"""Asks for the position after a text, with biases of tokens; None if nothing is told of it."""


def read_told(logprobs: Any) -> list[Told]:
    """Read the ``logprobs`` of a reply.

    Args:
        logprobs: As parsed from JSON: of a completion, or in the form of chats, which some servers give to both.

    Returns:
        The positions.
    """
    if logprobs.get("content") is not None:
        return [
            _told(step["token"], step["logprob"], ((each["token"], each["logprob"]) for each in step["top_logprobs"]))
            for step in logprobs["content"]
        ]
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    return [_told(token, value, (top or {}).items()) for token, value, top in zip(*columns, strict=True)]


def _told(token: str, value: float | None, pairs: Iterable[tuple[str, float | None]]) -> Told:
    known = [(text, each) for text, each in ((token, value), *pairs) if each is not None and _is_told(each)]
    written = value if value is not None and _is_told(value) else OUTSIDE
    return Told(token, written, _likeliest(known))


def _is_told(value: float) -> bool:
    return math.isfinite(value) and value > _UNREACHED


def _likeliest(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Tokens by text; of several with one text the likeliest."""
    top: dict[str, float] = {}
    for text, value in pairs:
        top[text] = max(value, top.get(text, value))
    return top


def label_pieces(tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, tuple[Piece, ...]]:
    """Split labels into the tokens of the served model.

    Args:
        tokenizer: Its tokenizer.
        labels: Answers.

    Returns:
        Label -> its tokens.

    Raises:
        TaskError: If a token ends within a character, so that a prompt cannot end there.
    """
    split = {}
    for label in labels:
        encoding, start, pieces = tokenizer.encode(label, add_special_tokens=False), 0, []
        for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
            text = label[start:end]
            pieces.append(Piece(text, token, frozenset({text, tokenizer.decode([token], skip_special_tokens=False)})))
            start = end
        if start != len(label) or not all(piece.text for piece in pieces):
            raise TaskError(f"label '{label}': its tokens are no whole characters; leave --tokenizer out")
        split[label] = tuple(pieces)
    return split


@dataclass(frozen=True)
class LabelScorer:
    """Scores the labels of a prompt by a server that goes on with any text.

    Attributes:
        labels: Answers.
        pieces: Their tokens; empty where the served model's tokenizer is not known. Then a label's next token is the
            longest told one that the label goes on with.
    """

    labels: Sequence[str]
    pieces: Mapping[str, Sequence[Piece]] = field(default_factory=dict)

    def scores(self, ask: Ask, prompt: str) -> list[Found]:
        """Add the log-likelihoods of every label's tokens, as validation does.

        Args:
            ask: Asks the server.
            prompt: The prompt.

        Returns:
            What was found of each label. One request for the prompt, and one for each further beginning of a label.
        """
        known: dict[str, Told | None] = {}

        def told(context: str) -> Told | None:
            if context not in known:
                known[context] = ask(context, {})
            return known[context]

        return [
            _follow_pieces(ask, told, prompt, self.pieces[label]) if self.pieces else _follow_text(told, prompt, label)
            for label in self.labels
        ]


def _follow_text(told: Callable[[str], Told | None], prompt: str, label: str) -> Found:
    total, rest = 0.0, label
    while rest:
        step = told(prompt + label[: len(label) - len(rest)])
        found = None if step is None else next_token(rest, step.top)
        if found is None:
            return Found(OUTSIDE, True, rest != label)
        total += found[1]
        rest = rest[found[0] :]
    return Found(total, False, True)


def _follow_pieces(ask: Ask, told: Callable[[str], Told | None], prompt: str, pieces: Sequence[Piece]) -> Found:
    total, outside = 0.0, False
    for piece in pieces:
        step = told(prompt)
        if step is None:
            return Found(OUTSIDE, True)
        value = piece_value(piece, step.top)
        outside |= value is None
        if value is None:
            value = forced(step, ask(prompt, {piece.token: FORCING_BIAS}), piece)
        if value == OUTSIDE:
            return Found(OUTSIDE, True)
        total += value
        prompt += piece.text
    return Found(total, outside, True)


def piece_value(piece: Piece, top: Mapping[str, float]) -> float | None:
    """Find a known token among the told ones.

    Args:
        piece: The token.
        top: Text of each told token -> log-likelihood.

    Returns:
        Its log-likelihood, in another form than its text only where the server tells no leading spaces; None if it is
        not told.
    """
    if piece.text in top or _tells_spaces(top):
        return top.get(piece.text)
    return max((top[form] for form in piece.forms if form in top), default=None)


def _tells_spaces(top: Mapping[str, float]) -> bool:
    return any(text.startswith(" ") and text.strip(" ") for text in top)


def forced(plain: Told, biased: Told | None, piece: Piece) -> float:
    """Find the log-likelihood of a token that was not told, from an answer in which a bias made it the written one.

    Some servers tell likelihoods as they were before the bias, others after it. Then all other tokens lost what the
    normalisation took, which any token that is told both times shows.

    Args:
        plain: The position without the bias.
        biased: The same with ``FORCING_BIAS`` on the token.
        piece: The token.

    Returns:
        Log-likelihood without the bias; ``OUTSIDE`` if the server did not write the token.
    """
    if biased is None or biased.token not in piece.forms:
        return OUTSIDE
    both = [text for text in plain.top if text in biased.top and text != biased.token]
    if not both:
        return OUTSIDE
    anchor = max(both, key=lambda text: plain.top[text])
    lost = plain.top[anchor] - biased.top[anchor]
    return biased.value if lost < _TOLD_BEFORE_BIAS else biased.value - FORCING_BIAS + lost


def next_token(rest: str, top: Mapping[str, float]) -> tuple[int, float] | None:
    """Find the told token that a label goes on with.

    Args:
        rest: What is left of the label.
        top: Text of each told token -> log-likelihood.

    Returns:
        Characters of the label that it takes, and its log-likelihood: the longest; without its leading space only where
        no token is told with one, as by some servers, since else it is another token. None if there is none.
    """
    space = 0 if _tells_spaces(top) else len(rest) - len(rest.lstrip(" "))
    found = []
    for text, value in top.items():
        exact = rest.startswith(text)
        # Space alone may belong to another token of the label.
        if text.strip(" ") and (exact or rest[space:].startswith(text)):
            found.append((len(text) + (0 if exact else space), exact, value))
    if not found:
        return None
    taken, _, value = max(found)
    return taken, value

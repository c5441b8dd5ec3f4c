"""What a judge is asked and what its replies mean: verdicts, silence, and how long to wait before asking again."""

import datetime
import email.utils
from collections.abc import Iterable, Mapping
from typing import Any

from sieve_edge.protocols import Asked

SYSTEM = (
    "You grade answers. You are given a question with its context, reference answers, and a candidate answer. Say "
    '"correct" if the candidate means the same as a reference, else "incorrect". Say one word only.'
)
QUESTION = "Question:\n{question}\n\nReference answers:\n{references}\n\nCandidate answer:\n{answer}\n\nVerdict:"
VERDICTS = {"correct": 1.0, "incorrect": 0.0}
UNJUDGED = float("nan")
CUT_OFF = " [cut off at max_answer_tokens]"
"""Follows what a judge had not finished saying, so that it is never taken for a verdict or a refusal."""

_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_TOKENS_AROUND = 64
"""More than any chat template puts around two messages."""


def write_question(one: Asked) -> str:
    """Write what a judge is asked.

    Args:
        one: An answer with its question.

    Returns:
        The message.
    """
    references = "\n".join(f"- {each}" for each in one.references)
    return QUESTION.format(question=one.question, references=references, answer=one.answer)


def most_tokens(question: str) -> int:
    """Bound what a judge reads, whatever its tokenizer: no token is shorter than a byte.

    Args:
        question: The message.

    Returns:
        Tokens, several times as many as there will be.
    """
    return len((SYSTEM + question).encode()) + _TOKENS_AROUND


def said_words(reply: Any) -> str:
    """Take the words out of a reply; another shape of reply raises LookupError, TypeError or AttributeError.

    Args:
        reply: Tree of a chat completion.

    Returns:
        The words; an empty string for a refusal, which has none. ``CUT_OFF`` follows what was not finished.
    """
    choice = reply["choices"][0]
    content = choice["message"].get("content")
    words = content if isinstance(content, str) else ""
    # A verdict of one token may end at a limit of one.
    unfinished = choice.get("finish_reason") == "length" and parse_verdict(words) is None
    return words + CUT_OFF if unfinished else words


def parse_verdict(words: str) -> float | None:
    """Read a verdict: one of the two words and nothing else, but for a block of thoughts before it.

    Args:
        words: What the judge said.

    Returns:
        1 for correct, 0 for incorrect; None for anything else.
    """
    said = words.rpartition(_THOUGHT_ENDS)[2]
    return None if _THOUGHT_BEGINS in said else VERDICTS.get(said.strip().strip("\"'.!*").lower())


def count_silent(said: Iterable[str]) -> dict[str, int]:
    """Count by kind what is no verdict.

    Args:
        said: Words that are none.

    Returns:
        ``refused`` (no words) and ``unparsable``; ``cut_off``, which is a part of the latter.
    """
    found = list(said)
    refused = sum(not words.strip() for words in found)
    cut_off = sum(words.endswith(CUT_OFF) for words in found)
    return {"refused": refused, "unparsable": len(found) - refused, "cut_off": cut_off}


def pause_s(headers: Mapping[str, str], number: int, spread: float, now: datetime.datetime) -> float:
    """Say how long to wait before the next try.

    Args:
        headers: Of the reply that asks for it, names in lower case.
        number: Tries before, from 0.
        spread: Fraction by which the wait is longer, so that calls that failed together do not return together.
        now: The time.

    Returns:
        Seconds: what the endpoint asks for, else twice as long each time.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        asked = headers.get(name, "")
        if asked.replace(".", "", 1).isdigit():
            return min(float(asked) * unit, _LONGEST_PAUSE_S)
        if asked and name == "retry-after":
            try:
                date = email.utils.parsedate_to_datetime(asked)
            except ValueError:
                continue
            date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
            return min(max((date - now).total_seconds(), 0.0), _LONGEST_PAUSE_S)
    return min(_FIRST_PAUSE_S * 2.0**number * (1.0 + spread), _LONGEST_PAUSE_S)

"""What a written answer is worth against the reference answers: pure functions of text, each between 0 and 1."""

import functools
import importlib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sieve_edge.errors import EnvironmentMissing
from sieve_edge.task_config import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FIX_MISSING = "run: pip install 'sieve-edge[rouge]'"

Metric = Callable[[str, str], float]
"""Answer and one reference -> what the answer is worth."""


def check_metric(task: Task) -> None:
    """Raise ``EnvironmentMissing`` if the library of a task's metric is missing, before anything expensive.

    Args:
        task: The task.
    """
    if "rouge_l" in (task.metric, None if task.judge is None else task.judge.screen):
        _rouge()


def credit(task: Task, name: str, answer: str, references: Sequence[str]) -> float:
    """Compare an answer with the references.

    Args:
        task: The task, for the options of its metric.
        name: Metric.
        answer: What the model wrote.
        references: Right answers.

    Returns:
        Its worth against the reference that suits it best.
    """
    metrics: dict[str, Metric] = {
        "exact_match": exact_match,
        "token_f1": token_f1,
        "contains": contains,
        "regex": lambda answer, reference: matches(task.pattern or "", answer, reference),
        "json_field": lambda answer, reference: json_field(task.field or "", answer, reference),
        "rouge_l": rouge_l,
    }
    return max(metrics[name](answer, reference) for reference in references)


def normalise(text: str) -> str:
    """Make answers comparable: lower case, without punctuation, articles and extra space.

    Args:
        text: Any text.

    Returns:
        Words with one space between them; a text of nothing else as it is, in lower case.

    Source:
        SQuAD 1.1's evaluation script.
    """
    words = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    # An answer such as "A" is all of it.
    return " ".join(words) or text.strip().casefold()


def exact_match(answer: str, reference: str) -> float:
    """Say whether both are the same after ``normalise``.

    Args:
        answer: What the model wrote.
        reference: A right answer.

    Returns:
        1 or 0.
    """
    return float(normalise(answer) == normalise(reference))


def token_f1(answer: str, reference: str) -> float:
    """Measure the overlap in words, after ``normalise``.

    Args:
        answer: What the model wrote.
        reference: A right answer.

    Returns:
        Harmonic mean of precision and recall; where either has no words, whether both have none.

    Source:
        SQuAD 1.1's evaluation script.
    """
    given, wanted = normalise(answer).split(), normalise(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2.0 * common / (len(given) + len(wanted))


def contains(answer: str, reference: str) -> float:
    """Say whether the reference's words occur in the answer, side by side, after ``normalise``.

    Args:
        answer: What the model wrote.
        reference: A right answer.

    Returns:
        1 or 0; 0 for a reference without words.
    """
    wanted = normalise(reference)
    return float(bool(wanted) and f" {wanted} " in f" {normalise(answer)} ")


def matches(pattern: str, answer: str, reference: str) -> float:
    """Say whether what a pattern finds in the answer is the reference, but for case and space around it.

    Args:
        pattern: Regular expression with a group.
        answer: What the model wrote.
        reference: A right answer.

    Returns:
        1 or 0; 0 where nothing is found.
    """
    found = re.search(pattern, answer)
    return 0.0 if found is None or found.group(1) is None else _same(found.group(1), reference)


def json_field(field: str, answer: str, reference: str) -> float:
    """Say whether a field of the JSON object in the answer is the reference, but for case and space around it.

    Args:
        field: Name of the field.
        answer: What the model wrote; text before and after the object does not count.
        reference: A right answer.

    Returns:
        1 or 0; 0 where there is no such object or field.
    """
    for start in (place for place, letter in enumerate(answer) if letter == "{"):
        try:
            tree, _ = json.JSONDecoder().raw_decode(answer, start)
        except json.JSONDecodeError:
            continue
        if field in tree:
            value = tree[field]
            return _same(value if isinstance(value, str) else json.dumps(value), reference)
    return 0.0


def _same(answer: str, reference: str) -> float:
    # Signs and points count: these answers are often numbers.
    return float(answer.strip().casefold() == reference.strip().casefold())


def rouge_l(answer: str, reference: str) -> float:
    """Measure the longest common subsequence of words.

    Args:
        answer: What the model wrote.
        reference: A right answer.

    Returns:
        ROUGE-L's F-measure, of the rouge-score library, without stemming; words of any script, unlike its own.
    """
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


@functools.cache
def _rouge() -> Any:
    try:
        scorer = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise EnvironmentMissing(f"rouge-score cannot be imported ({error}); {_FIX_MISSING}") from error
    return scorer.RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """Splits text for the rouge-score library."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())

"""Scores any OpenAI-compatible server on a task, as its clients see it."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sieve_edge.errors import EnvironmentMissing, SieveError
from sieve_edge.protocols import Asked, Judge, Progress
from sieve_edge.task.evaluate import Grades, grade_labels
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example
from sieve_edge.task.written import grade_written
from sieve_edge.task_config import Task

OUTSIDE = -1e9
"""Log-likelihood of a label that is not among the tokens that the server tells; lower than any that is."""

NO_KEY = "none"
"""Sent where no key is named; a key goes only where the user says so."""

LONGEST_COMMON = 4
"""Tokens in which labels may begin alike."""

_MOST_STOPS = 4


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked.

    Attributes:
        url: Up to and with /v1.
        model: Name of the model; None for the first that the server lists.
        api_key_env: Environment variable that holds the key; None to send none.
        concurrency: Calls at a time.
        top: Likeliest tokens that are asked for at the answer's position.
    """

    url: str
    model: str | None = None
    api_key_env: str | None = None
    concurrency: int = 4
    top: int = 20


def evaluate_endpoint(
    endpoint: Endpoint, task: Task, examples: Sequence[Example], judge: Judge | None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a server on examples.

    Labels are compared by the log-likelihood of their first token among those that the server tells: a server of an
    artifact has its prior applied already, for another no prior is fitted. Written answers are graded by the metric.

    Args:
        endpoint: The server.
        task: The task.
        examples: Examples.
        judge: Who grades, for metric ``judge``.
        progress: Told how many examples were just answered.

    Returns:
        ``score``, ``examples``, and of labels how many were ``outside`` the told tokens and how many examples had
        ``none_inside``; of a judge, on how many it gave no verdict, ``unjudged``.
    """
    client = _connect(endpoint)
    model = endpoint.model or _first_model(client, endpoint)
    answer = _written if task.writes else _label_scores

    def ask(example: Example) -> Any:
        found = _guarded(endpoint, lambda: answer(client, model, endpoint, task, example))
        if progress:
            progress(1)
        return found

    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        answers = list(pool.map(ask, examples))
    facts = {"endpoint": endpoint.url, "model": model, "metric": task.metric, "examples": len(examples)}
    if task.writes:
        asked = [Asked(item.question, answer, item.references) for item, answer in zip(examples, answers, strict=True)]
        grades = grade_written(task, Examiner(task).screen, judge, asked)
        silent = {} if judge is None else {"unjudged": round(grades.unjudged * len(asked))}
        return {**facts, "score": grades.score, **silent}
    scores_NK = np.asarray(answers)
    outside = scores_NK == OUTSIDE
    counts = {"outside": int(outside.sum()), "none_inside": int(outside.all(1).sum())}
    return {**facts, "score": _grades(scores_NK, examples).score, **counts}


def _grades(scores_NK: Any, examples: Sequence[Example]) -> Grades:
    labels_N = np.asarray([example.label for example in examples], dtype=np.int64)
    grades = grade_labels(scores_NK, labels_N, np.zeros(0))
    silent_N = (scores_NK == OUTSIDE).all(1)
    return Grades(np.where(silent_N, 0.0, grades.credits_N), labels_N, grades.collapsed)


def _label_scores(client: Any, model: str, endpoint: Endpoint, task: Task, example: Example) -> list[float]:
    labels = list(task.labels.values())
    # Further positions matter only where labels begin alike.
    asked = 1 if len({label.strip()[:1] for label in labels}) == len(labels) else LONGEST_COMMON
    if task.messages:
        reply = client.chat.completions.create(
            model=model,
            messages=list(example.messages),
            max_tokens=asked,
            temperature=0,
            logprobs=True,
            top_logprobs=endpoint.top,
        )
        steps = [
            (step.token, _likeliest((each.token, each.logprob) for each in step.top_logprobs))
            for step in reply.choices[0].logprobs.content
        ]
    else:
        reply = client.completions.create(
            model=model, prompt=example.prompt, max_tokens=asked, temperature=0, logprobs=endpoint.top
        )
        told = reply.choices[0].logprobs
        tops = [_likeliest(top.items()) for top in told.top_logprobs]
        steps = list(zip(told.tokens, tops, strict=True))
    return deciding_scores(steps, labels)


def _likeliest(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Tokens by text; of several with one text the likeliest."""
    told: dict[str, float] = {}
    for text, value in pairs:
        told[text] = max(value, told.get(text, value))
    return told


def deciding_scores(steps: Sequence[tuple[str, dict[str, float]]], labels: Sequence[str]) -> list[float]:
    """Find the labels' scores at the position that tells them apart.

    Args:
        steps: The token that was written at each position, and the told tokens with their log-likelihoods.
        labels: Answers.

    Returns:
        Log-likelihood of each label there, given what all begin with; ``OUTSIDE`` where it is not told.
    """
    rest = list(labels)
    for written, told in steps:
        scores = first_token_scores(told, rest)
        begun = written.strip()
        if max(scores) > OUTSIDE or not begun or not all(label.strip().startswith(begun) for label in rest):
            return scores
        rest = [label.strip().removeprefix(begun) for label in rest]
    return [OUTSIDE] * len(labels)


def first_token_scores(told: dict[str, float], labels: Sequence[str]) -> list[float]:
    """Find each label among the tokens that a server tells.

    Args:
        told: Text of a token -> natural log-likelihood.
        labels: Answers.

    Returns:
        Log-likelihood of the token that is the label; else of the tokens that, space aside, begin this label and no
        other, their probabilities added; ``OUTSIDE`` where there are none.
    """
    scores = []
    for label in labels:
        if label in told:
            scores.append(told[label])
            continue
        mine = [
            value
            for token, value in told.items()
            if token.strip() and [other for other in labels if other.strip().startswith(token.strip())] == [label]
        ]
        scores.append(math.log(sum(map(math.exp, mine))) if mine else OUTSIDE)
    return scores


def _written(client: Any, model: str, _: Endpoint, task: Task, example: Example) -> str:
    limits = {"max_tokens": task.max_new_tokens, "temperature": 0, "stop": list(task.stop)[:_MOST_STOPS]}
    if task.messages:
        reply = client.chat.completions.create(model=model, messages=list(example.messages), **limits)
        text = reply.choices[0].message.content or ""
    else:
        text = str(client.completions.create(model=model, prompt=example.prompt, **limits).choices[0].text)
    for stop in task.stop:
        text = text.partition(stop)[0]
    return text.strip()


def _first_model(client: Any, endpoint: Endpoint) -> str:
    models = _guarded(endpoint, lambda: list(client.models.list()))
    if not models:
        raise SieveError(f"{endpoint.url}: lists no model; name one with --model")
    return str(models[0].id)


def _guarded(endpoint: Endpoint, call: Callable[[], Any]) -> Any:
    import openai

    try:
        return call()
    # What a server says may repeat the key: only the status and the kind of error are passed on.
    except openai.APIStatusError as error:
        raise SieveError(
            f"{endpoint.url}: status {error.status_code}; does it serve this model and logprobs?"
        ) from None
    except (openai.OpenAIError, AttributeError, TypeError, IndexError) as error:
        raise SieveError(f"{endpoint.url}: no usable answer ({type(error).__name__}); is the server there?") from None


def _connect(endpoint: Endpoint) -> Any:
    try:
        import openai
    except ImportError as error:
        raise EnvironmentMissing(
            f"openai cannot be imported ({error}); run: pip install 'sieve-edge[judge]'"
        ) from error
    key = None if endpoint.api_key_env is None else os.environ.get(endpoint.api_key_env)
    if endpoint.api_key_env is not None and not key:
        raise EnvironmentMissing(f"{endpoint.api_key_env} is not set; set it to the key of {endpoint.url}")
    return openai.OpenAI(base_url=endpoint.url, api_key=key or NO_KEY)

"""Scores any OpenAI-compatible server on a task, as its clients see it."""

import math
import os
from collections.abc import Callable, Sequence
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
"""Sent where the environment holds no key; local servers want none."""


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked.

    Attributes:
        url: Up to and with /v1.
        model: Name of the model; None for the first that the server lists.
        api_key_env: Environment variable that holds the key.
        concurrency: Calls at a time.
        top: Likeliest tokens that are asked for at the answer's position.
    """

    url: str
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
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
        ``none_inside``.
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
        asked = [Asked(item.prompt, answer, item.references) for item, answer in zip(examples, answers, strict=True)]
        return {**facts, "score": grade_written(task, Examiner(task).screen, judge, asked).score}
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
    if task.messages:
        reply = client.chat.completions.create(
            model=model,
            messages=list(example.messages),
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=endpoint.top,
        )
        told = {each.token: each.logprob for each in reply.choices[0].logprobs.content[0].top_logprobs}
    else:
        reply = client.completions.create(
            model=model, prompt=example.prompt, max_tokens=1, temperature=0, logprobs=endpoint.top
        )
        told = reply.choices[0].logprobs.top_logprobs[0]
    return first_token_scores(told, list(task.labels.values()))


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
    limits = {"max_tokens": task.max_new_tokens, "temperature": 0, "stop": list(task.stop)[:4]}
    if task.messages:
        reply = client.chat.completions.create(model=model, messages=list(example.messages), **limits)
        return (reply.choices[0].message.content or "").strip()
    reply = client.completions.create(model=model, prompt=example.prompt, **limits)
    return str(reply.choices[0].text).strip()


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
    return openai.OpenAI(base_url=endpoint.url, api_key=os.environ.get(endpoint.api_key_env) or NO_KEY)

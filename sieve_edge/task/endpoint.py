"""Scores any OpenAI-compatible server on a task, as its clients see it."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sieve_edge.errors import EnvironmentMissing, SieveError
from sieve_edge.keys import shown_variable
from sieve_edge.protocols import Asked, Judge, Progress
from sieve_edge.task.evaluate import Grades, grade_labels
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example
from sieve_edge.task.told import (
    FORCING_BIAS,
    OUTSIDE,
    Found,
    LabelScorer,
    Piece,
    Told,
    forced,
    label_pieces,
    piece_value,
    read_told,
)
from sieve_edge.task.told_chats import chat_scores
from sieve_edge.task.written import grade_written
from sieve_edge.task_config import Task

NO_KEY = "none"
"""Sent where no key is named; a key goes only where the user says so."""

LONGEST_COMMON = 4
"""Tokens in which the labels of a chat may begin alike."""

FEWER = (10, 5, 1)
"""How many log-likelihoods are asked for where a server refuses more; OpenAI's completions give five."""

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
        tokenizer: The served model's; None if it is not known, and ``logit_bias`` cannot be used.
    """

    url: str
    model: str | None = None
    api_key_env: str | None = None
    concurrency: int = 4
    top: int = 20
    tokenizer: Tokenizer | None = None


def evaluate_endpoint(
    endpoint: Endpoint, task: Task, examples: Sequence[Example], judge: Judge | None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a server on examples.

    Labels are compared by the log-likelihood of all their tokens, as validation does: a server of an artifact has its
    prior applied already, for another no prior is fitted. Written answers are graded by the metric.

    Args:
        endpoint: The server.
        task: The task.
        examples: Examples.
        judge: Who grades, for metric ``judge``.
        progress: Told how many examples were just answered.

    Returns:
        ``score``, ``examples``, and of labels how many were ``outside`` the told tokens, how many of these
        ``by_logit_bias`` were scored nevertheless, and how many examples had ``none_inside``; of a judge, on how many
        it gave no verdict, ``unjudged``.
    """
    server = _Server(endpoint)
    answer = server.written if task.writes else _label_asker(server, endpoint, task)

    def ask(example: Example) -> Any:
        found = _guarded(endpoint, lambda: answer(task, example))
        if progress:
            progress(1)
        return found

    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        answers = list(pool.map(ask, examples))
    facts = {"endpoint": endpoint.url, "model": server.model, "metric": task.metric, "examples": len(examples)}
    if task.writes:
        asked = [Asked(item.question, answer, item.references) for item, answer in zip(examples, answers, strict=True)]
        grades = grade_written(task, Examiner(task).screen, judge, asked)
        silent = {} if judge is None else {"unjudged": round(grades.unjudged * len(asked))}
        return {**facts, "score": grades.score, **silent}
    if task.messages:
        _check_whole(endpoint, list(task.labels.values()), answers)
    scores_NK = np.asarray([[label.score for label in found] for found in answers])
    outside = np.asarray([[label.outside for label in found] for found in answers])
    counts = {
        "top": server.top,
        "outside": int(outside.sum()),
        "by_logit_bias": int((outside & (scores_NK > OUTSIDE)).sum()),
        "none_inside": int((scores_NK == OUTSIDE).all(1).sum()),
    }
    return {**facts, "score": _grades(scores_NK, examples).score, **counts}


def _grades(scores_NK: Any, examples: Sequence[Example]) -> Grades:
    labels_N = np.asarray([example.label for example in examples], dtype=np.int64)
    grades = grade_labels(scores_NK, labels_N, np.zeros(0))
    silent_N = (scores_NK == OUTSIDE).all(1)
    return Grades(np.where(silent_N, 0.0, grades.credits_N), labels_N, grades.collapsed)


def _check_whole(endpoint: Endpoint, labels: Sequence[str], answers: Sequence[Sequence[Found]]) -> None:
    for label, *found in zip(labels, *answers, strict=True):
        if any(each.begun for each in found) and all(each.score == OUTSIDE for each in found):
            raise SieveError(
                f"{endpoint.url}: label '{label}' takes several tokens, and a chat cannot be continued to score them; "
                "choose labels of one token, or a task with a prompt in place of messages"
            )


def _label_asker(server: "_Server", endpoint: Endpoint, task: Task) -> Callable[[Task, Example], list[Found]]:
    labels = list(task.labels.values())
    pieces = {} if endpoint.tokenizer is None else label_pieces(endpoint.tokenizer, labels)
    scorer = LabelScorer(labels, pieces)

    def ask(_: Task, example: Example) -> list[Found]:
        if task.messages:
            return _chat_labels(server, example, labels, pieces)
        return scorer.scores(server.next_token, example.prompt)

    return ask


def _chat_labels(
    server: "_Server", example: Example, labels: Sequence[str], pieces: Mapping[str, Sequence[Piece]]
) -> list[Found]:
    # Further positions matter only where labels begin alike.
    apart = len({label.strip()[:1] for label in labels}) == len(labels)
    steps = server.steps(list(example.messages), 1 if apart else LONGEST_COMMON, {})
    found = chat_scores(steps, labels)
    for index, label in enumerate(labels):
        own = pieces.get(label, ())
        if len(own) != 1 or not steps:
            continue
        value = piece_value(own[0], steps[0].top)
        outside = value is None
        if value is None:
            biased = server.steps(list(example.messages), 1, {own[0].token: FORCING_BIAS})
            value = forced(steps[0], biased[0] if biased else None, own[0])
        found[index] = Found(value, outside, found[index].begun or not outside)
    return found


class _Server:
    """One model of an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._client = endpoint, _connect(endpoint)
        self.model = endpoint.model or self._first_model()
        self.top = endpoint.top

    def next_token(self, prompt: str, bias: Mapping[int, float]) -> Told | None:
        steps = self.steps(prompt, 1, bias)
        return steps[0] if steps else None

    def steps(self, asked: str | list[Any], tokens: int, bias: Mapping[int, float]) -> list[Told]:
        """Let a prompt or a chat be answered; where the server refuses so many log-likelihoods, with fewer."""
        import openai

        refused = None
        for top in (self.top, *(each for each in FEWER if each < self.top)):
            try:
                told = self._logprobs(asked, top, max_tokens=tokens, logit_bias={str(one): bias[one] for one in bias})
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = refused or error
                continue
            self.top = min(self.top, top)
            return read_told(told)
        raise refused or AssertionError("at least one was asked for")

    def _logprobs(self, asked: str | list[Any], top: int, **options: Any) -> Any:
        options = {"model": self.model, "temperature": 0, **{name: each for name, each in options.items() if each}}
        if isinstance(asked, str):
            reply = self._client.completions.create(prompt=asked, logprobs=top, **options)
        else:
            reply = self._client.chat.completions.create(messages=asked, logprobs=True, top_logprobs=top, **options)
        told = reply.to_dict(warnings=False)["choices"][0].get("logprobs")
        if told is None:
            raise SieveError(
                f"{self._endpoint.url}: tells no log-likelihoods, by which labels are compared; see the server's "
                "options, or give the task a metric of written answers"
            )
        return told

    def written(self, task: Task, example: Example) -> str:
        limits = {"max_tokens": task.max_new_tokens, "temperature": 0, "stop": list(task.stop)[:_MOST_STOPS]}
        if task.messages:
            messages = list(example.messages)
            reply = self._client.chat.completions.create(model=self.model, messages=messages, **limits)
            text = reply.choices[0].message.content or ""
        else:
            reply = self._client.completions.create(model=self.model, prompt=example.prompt, **limits)
            text = str(reply.choices[0].text)
        for stop in task.stop:
            text = text.partition(stop)[0]
        return text.strip()

    def _first_model(self) -> str:
        models = _guarded(self._endpoint, lambda: [str(model.id) for model in self._client.models.list()])
        if not models:
            raise SieveError(f"{self._endpoint.url}: lists no model; name one with --model")
        return str(models[0])


def _guarded(endpoint: Endpoint, call: Callable[[], Any]) -> Any:
    import openai

    try:
        return call()
    # What a server says may repeat the key: only the status and the kind of error are passed on.
    except openai.AuthenticationError as error:
        raise EnvironmentMissing(
            f"{endpoint.url}: the server refuses the key, status {error.status_code}; set the variable of --api-key-env"
        ) from None
    except openai.APIStatusError as error:
        raise SieveError(
            f"{endpoint.url}: status {error.status_code}; does it serve this model, and logprobs where labels are "
            "compared?"
        ) from None
    except openai.OpenAIError as error:
        raise SieveError(f"{endpoint.url}: no usable answer ({type(error).__name__}); is the server there?") from None
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise SieveError(
            f"{endpoint.url}: no usable answer ({type(error).__name__}); it must answer as OpenAI's API does"
        ) from None


def _connect(endpoint: Endpoint) -> Any:
    try:
        import openai
    except ImportError as error:
        raise EnvironmentMissing(
            f"openai cannot be imported ({error}); run: pip install 'sieve-edge[judge]'"
        ) from error
    key = None if endpoint.api_key_env is None else os.environ.get(endpoint.api_key_env)
    if endpoint.api_key_env is not None and not key:
        named = shown_variable(endpoint.api_key_env, "the variable of --api-key-env")
        raise EnvironmentMissing(f"{named} is not set; set it to the key of {endpoint.url}")
    return openai.OpenAI(base_url=endpoint.url, api_key=key or NO_KEY)

"""Replies to clients: an exported folder in its runtime, and one request on its way to an answer."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from sieve_edge.device.api import Asked, ChatCompletion, Completion
from sieve_edge.device.completions import LabelPrior, Sampling, Step, complete
from sieve_edge.protocols import Chat, TextModel
from sieve_edge.task.prompts import write_chat


class BadRequest(Exception):
    """A request that cannot be answered; status 400."""


@dataclass
class Served:
    """One exported folder.

    Attributes:
        name: What clients call the model.
        model: The folder in its runtime.
        tokenizer: Its tokenizer.
        ends: Tokens that end an answer.
        prior: Correction of label tokens.
        chat: How chats are written; None if the model has no template.
        context_tokens: Most tokens of a prompt with its answer.
    """

    name: str
    model: TextModel
    tokenizer: Tokenizer
    ends: tuple[int, ...]
    prior: LabelPrior
    chat: Chat | None
    context_tokens: int

    def prompts(self, asked: Completion) -> list[list[int]]:
        """Read the prompts of a request.

        Args:
            asked: The request.

        Returns:
            Token ids of each prompt.
        """
        if isinstance(asked.prompt, str):
            return [self.tokenizer.encode(asked.prompt).ids]
        if all(isinstance(each, int) for each in asked.prompt):
            return [[int(each) for each in asked.prompt]]
        return [self.tokenizer.encode(str(each)).ids for each in asked.prompt]

    def steps(self, prompt: list[int], asked: Asked, max_tokens: int, top: int) -> Iterator[tuple[Step, str]]:
        """Answer one prompt.

        Args:
            prompt: Token ids.
            asked: The request.
            max_tokens: Most tokens of the answer.
            top: Likeliest tokens to tell of each position.

        Yields:
            Each token with the text that it adds.

        Raises:
            BadRequest: If the prompt is empty or too long, or a token id is none of the model's.
        """
        if not prompt:
            raise BadRequest("the prompt is empty")
        size = self.tokenizer.get_vocab_size()
        if max(prompt) >= size:
            raise BadRequest(f"prompt: {max(prompt)} is no token id, must be below {size}")
        if len(prompt) + max_tokens > self.context_tokens:
            raise BadRequest(
                f"prompt and answer take {len(prompt)} + {max_tokens} tokens, this server holds {self.context_tokens}"
            )
        sampling = Sampling(max_tokens, asked.temperature, asked.top_p, top, self._bias(asked), asked.seed)
        written: list[int] = []
        shown = ""
        for count, step in enumerate(complete(self.model, prompt, sampling, self.prior, self.ends), 1):
            ended = step.token in self.ends
            written += [] if ended else [step.token]
            # With special tokens, since one may be a stop string; validation does the same.
            text = self.tokenizer.decode(written, skip_special_tokens=False)
            # A character that is not complete yet comes with the next token, if there is one.
            more_comes = not ended and count < max_tokens
            new = "" if more_comes and text.endswith("\ufffd") else text[len(shown) :]
            shown += new
            yield step, new

    def _bias(self, asked: Asked) -> dict[int, float]:
        size = self.tokenizer.get_vocab_size()
        given = asked.logit_bias or {}
        wrong = [token for token in given if not token.isdecimal() or int(token) >= size]
        if wrong:
            raise BadRequest(f"logit_bias: {wrong[0]} is no token id, must be below {size}")
        return {int(token): value for token, value in given.items()}


@dataclass
class _Answer:
    """What was written so far."""

    text: str = ""
    steps: list[Step] = field(default_factory=list)
    reason: str = "length"


def _never() -> bool:
    return False


class Job:
    """One request on its way to a reply."""

    def __init__(self, served: Served, asked: Any, number: str, stopped: Callable[[], bool] = _never) -> None:
        """Read the request.

        Args:
            served: What answers.
            asked: The request.
            number: Its name.
            stopped: Asked before each token whether nobody waits for the answer any more.

        Raises:
            BadRequest: If it cannot be answered.
        """
        self._served, self._asked, self._stopped = served, asked, stopped
        self._chat = isinstance(asked, ChatCompletion)
        self._prompts = [_chat_prompt(served, asked)] if self._chat else served.prompts(asked)
        if asked.stream and len(self._prompts) > 1:
            raise BadRequest("stream: one prompt at a time")
        if asked.stream and (asked.logprobs if self._chat else asked.logprobs is not None):
            raise BadRequest("stream: tells no log-probabilities; leave logprobs out, or stream")
        given = (asked.max_completion_tokens or asked.max_tokens) if self._chat else asked.max_tokens
        room = served.context_tokens - max(map(len, self._prompts))
        self._max_tokens = given or max(room, 1)
        self._top = asked.top_logprobs if self._chat else asked.logprobs or 0
        self._head = {"id": number, "created": int(time.time()), "model": served.name}

    def whole(self) -> dict[str, Any]:
        """Answer at once.

        Returns:
            The reply.
        """
        answers = [self._answer(ids) for ids in self._prompts]
        used = {
            "prompt_tokens": sum(map(len, self._prompts)),
            "completion_tokens": sum(len(one.steps) for one in answers),
        }
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head, "object": kind, "choices": choices, "usage": used | {"total_tokens": sum(used.values())}}

    def events(self) -> Iterator[str]:
        """Answer piece by piece; what is wrong with the request is raised at once.

        Returns:
            Server-sent events; an empty string after a token that adds nothing yet.
        """
        answer = _Answer()
        pieces = self._pieces(self._prompts[0], answer)
        first = next(pieces, "")
        return self._told(itertools.chain([first], pieces), answer)

    def _answer(self, prompt: list[int]) -> _Answer:
        answer = _Answer()
        for text in self._pieces(prompt, answer):
            answer.text += text
        return answer

    def _pieces(self, prompt: list[int], answer: _Answer) -> Iterator[str]:
        """Yield after each token the text that no stop string can take back any more, which may be none."""
        stops = self._asked.stops()
        held = ""
        longest = max((len(stop) for stop in stops), default=1)
        steps = self._served.steps(prompt, self._asked, self._max_tokens, self._top)
        while not self._stopped() and (found := next(steps, None)) is not None:
            step, text = found
            answer.steps.append(step)
            held += text
            places = [place for stop in stops if (place := held.find(stop)) >= 0]
            if places:
                answer.reason = "stop"
                yield held[: min(places)]
                return
            if step.token in self._served.ends:
                answer.reason = "stop"
            free = max(len(held) - longest + 1, 0)
            yield held[:free]
            held = held[free:]
        yield held

    def _told(self, pieces: Iterator[str], answer: _Answer) -> Iterator[str]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        for text in pieces:
            if not text:
                yield ""
                continue
            said = {"delta": {"role": "assistant", "content": text}} if self._chat else {"text": text, "logprobs": None}
            choice = {"index": 0, **said, "finish_reason": None}
            yield f"data: {json.dumps({**self._head, 'object': kind, 'choices': [choice]})}\n\n"
        nothing: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        ended = {"index": 0, **nothing, "finish_reason": answer.reason}
        yield f"data: {json.dumps({**self._head, 'object': kind, 'choices': [ended]})}\n\ndata: [DONE]\n\n"

    def _choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        end = {"index": index, "finish_reason": answer.reason}
        if not self._chat:
            told = None if self._asked.logprobs is None else self._text_logprobs(answer.steps)
            return {**end, "text": answer.text, "logprobs": told}
        told = {"content": [self._told_token(step) for step in answer.steps]} if self._asked.logprobs else None
        return {**end, "message": {"role": "assistant", "content": answer.text}, "logprobs": told}

    def _text_logprobs(self, steps: Sequence[Step]) -> dict[str, Any]:
        return {
            "tokens": [self._word(step.token) for step in steps],
            "token_logprobs": [step.log_likelihood for step in steps],
            # Of several tokens with one text the likeliest is told, which comes last here.
            "top_logprobs": [{self._word(token): value for token, value in reversed(step.top)} for step in steps],
            "text_offset": [],
        }

    def _told_token(self, step: Step) -> dict[str, Any]:
        top = [{"token": self._word(token), "logprob": value, "bytes": None} for token, value in step.top]
        return {"token": self._word(step.token), "logprob": step.log_likelihood, "bytes": None, "top_logprobs": top}

    def _word(self, token: int) -> str:
        word: str = self._served.tokenizer.decode([token], skip_special_tokens=False)
        return word


def _chat_prompt(served: Served, asked: ChatCompletion) -> list[int]:
    if served.chat is None:
        raise BadRequest("this model has no chat template; use /v1/completions")
    text = write_chat([message.model_dump() for message in asked.messages], served.chat)
    ids: list[int] = served.tokenizer.encode(text).ids
    return ids

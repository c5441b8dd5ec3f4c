"""A model behind an OpenAI-compatible endpoint that says whether answers are correct; the only importer of openai.

Verdicts are kept on disk, so that nothing is asked twice. The key comes from the environment and goes nowhere else.
"""

import datetime
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from sieve_edge.errors import EnvironmentMissing, JudgeError
from sieve_edge.files import digest
from sieve_edge.keys import shown_variable
from sieve_edge.protocols import Asked
from sieve_edge.task.judge_words import (
    QUESTION,
    SYSTEM,
    UNJUDGED,
    count_silent,
    most_tokens,
    parse_verdict,
    pause_s,
    said_words,
    write_question,
)
from sieve_edge.task.verdicts import VerdictBook
from sieve_edge.task_config import JudgeSettings

_MILLION = 1e6
_FILTERED = "content_filter"
_TIMED_OUT = 408
_SPREAD = 0.25


class OpenAIJudge:
    """Asks an endpoint; see ``Judge``."""

    def __init__(self, settings: JudgeSettings, kept: Path, build: str) -> None:
        """Connect to nothing yet.

        Args:
            settings: Who judges, and the ceilings.
            kept: File of the verdicts.
            build: What the ceilings are of, such as the folder of a run; a build that goes on counts on.
        """
        self.settings = settings
        self._book = VerdictBook(kept, build)
        self._client: Any = None
        self._found: set[str] = set()
        self._asked: set[str] = set()
        self._unjudged: dict[str, str] = {}

    def grade(self, asked: Sequence[Asked]) -> list[float]:
        """Judge answers; see ``Judge``. Calls that fail end it, and what was said before is kept.

        Args:
            asked: Answers with their questions.

        Returns:
            1 for correct, 0 for incorrect, not-a-number for anything else that the judge said.
        """
        keys = [self._key(one) for one in asked]
        said = self._book.read(keys)
        self._found |= said.keys()
        said |= self._ask_all({key: one for key, one in zip(keys, asked, strict=True) if key not in said})
        self._unjudged |= {key: words for key, words in said.items() if parse_verdict(words) is None}
        verdicts = [parse_verdict(said[key]) for key in keys]
        return [UNJUDGED if verdict is None else verdict for verdict in verdicts]

    def facts(self) -> dict[str, Any]:
        """Say what judging took since this was asked last, for a stage's manifest.

        Returns:
            Judge, verdicts asked for, verdicts that were on disk, refusals and other words that are no verdict, of
            these such as were cut off; and of the whole build, calls with all tries, and money where prices are known.
        """
        silent = count_silent(self._unjudged.values())
        calls, usd = self._book.spent()
        told: dict[str, Any] = {"model": self.settings.model, "base_url": self.settings.base_url}
        # What a stage asks for twice was not there before it.
        known = len(self._found - self._asked)
        told |= {"asked": len(self._asked), "on_disk": known, **silent, "calls_of_build": calls}
        self._asked, self._found, self._unjudged = set(), set(), {}
        return told | ({"usd_of_build": round(usd, 6)} if self._priced() else {})

    def check(self) -> None:
        """Raise ``EnvironmentMissing`` if the key or the library is missing, before anything expensive."""
        self._connect()

    @property
    def calls(self) -> int:
        """Calls that this build made so far, all tries counted."""
        return self._book.spent()[0]

    def _key(self, one: Asked) -> str:
        judge = self.settings
        who = [judge.model, judge.base_url, judge.seed, judge.max_answer_tokens, SYSTEM, QUESTION]
        return digest([*who, one.question, one.answer, *one.references])

    def _ask_all(self, missing: Mapping[str, Asked]) -> dict[str, str]:
        if not missing:
            return {}
        client = self._connect()
        stop = threading.Event()

        def ask(item: tuple[str, Asked]) -> tuple[str, str] | None:
            if stop.is_set():
                return None
            try:
                words = self._ask(client, item[1], stop)
                if words is None:
                    return None
                self._book.keep(item[0], words)
            except BaseException:
                stop.set()
                raise
            return item[0], words

        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            futures = [pool.submit(ask, item) for item in missing.items()]
            wait(futures)
        except BaseException:
            # An interrupted build must not go on paying.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
        for future in futures:
            error = future.exception()
            if error is not None:
                raise error
        self._asked |= missing.keys()
        return dict(found for future in futures if (found := future.result()) is not None)

    def _ask(self, client: Any, one: Asked, stop: threading.Event) -> str | None:
        """Ask, and again after faults that pass, until another thread fails; every try counts as a call."""
        import openai

        judge, question = self.settings, write_question(one)
        most = self._price(most_tokens(question), judge.max_answer_tokens)
        for number in range(judge.retries + 1):
            # One that others ended, or that is interrupted, must not go on paying.
            if stop.is_set():
                return None
            self._book.reserve(judge.max_calls, judge.max_usd, most, judge.model)
            try:
                reply = self._call(client, question)
                words = said_words(reply)
            except openai.OpenAIError as error:
                if isinstance(error, openai.APIStatusError):
                    # What was turned down is not paid for; what was only not heard may be.
                    self._book.settle(-most)
                    if error.code == _FILTERED:
                        return ""
                stop.wait(self._pause_s(error, number))
                continue
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._failed(type(error).__name__, number) from None
            self._settle(reply, most)
            return words
        raise AssertionError("the last try returns or raises")

    def _call(self, client: Any, question: str) -> Any:
        """Ask once; a reply that trickles in is given up in time, since the client only limits each silence."""
        import openai

        judge = self.settings
        deadline, body = time.monotonic() + judge.timeout_s, b""
        with client.chat.completions.with_streaming_response.create(
            model=judge.model,
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            temperature=0,
            seed=judge.seed,
            **{judge.answer_limit: judge.max_answer_tokens},
        ) as response:
            try:
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > deadline:
                        raise TimeoutError
            except Exception as error:  # openai's client is built on one of several libraries, with errors of their own
                late = isinstance(error, TimeoutError) or time.monotonic() > deadline
                lost = openai.APITimeoutError if late else openai.APIConnectionError
                raise lost(request=response.http_request) from None
        return json.loads(body)

    def _pause_s(self, error: Any, number: int) -> float:
        """Say how long to wait after a fault that passes; another one, or one too many, is raised."""
        import openai

        judge, status = self.settings, getattr(error, "status_code", None)
        # What the endpoint says may repeat the key: only the status and the kind of error are passed on.
        if isinstance(error, openai.AuthenticationError):
            told = f"the endpoint refuses the key, status {status}; set {judge.api_key_env}"
            raise EnvironmentMissing(f"judge {judge.model}: {told}") from None
        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)
        if number == judge.retries or not (isinstance(error, passing) or status == _TIMED_OUT):
            raise self._failed(f"status {status}" if status else type(error).__name__, number) from None
        headers = getattr(getattr(error, "response", None), "headers", {})
        spread = random.random() * _SPREAD  # noqa: S311 (no secret)
        return pause_s(headers, number, spread, datetime.datetime.now(datetime.UTC))

    def _failed(self, what: str, number: int) -> JudgeError:
        tries = f"{number + 1} tries" if number else "1 try"
        return JudgeError(
            f"judge {self.settings.model}: no usable answer ({what}) after {tries}; verdicts so far are kept, and the "
            "same command goes on from them"
        )

    def _priced(self) -> bool:
        judge = self.settings
        return None not in (judge.usd_per_million_prompt_tokens, judge.usd_per_million_answer_tokens)

    def _price(self, read: int, written: int) -> float:
        """Price a call in USD; 0 where prices are not known."""
        judge = self.settings
        prices = (judge.usd_per_million_prompt_tokens or 0.0, judge.usd_per_million_answer_tokens or 0.0)
        return (read * prices[0] + written * prices[1]) / _MILLION if self._priced() else 0.0

    def _settle(self, reply: Any, most: float) -> None:
        """Replace what was set aside for a call by what it cost."""
        if not self._priced():
            return
        usage = reply.get("usage")
        told = usage if isinstance(usage, dict) else {}
        read, written = told.get("prompt_tokens"), told.get("completion_tokens")
        if isinstance(read, int) and isinstance(written, int):
            self._book.settle(self._price(read, written) - most)
        elif self.settings.max_usd is not None:
            raise JudgeError(f"judge {self.settings.model}: the endpoint tells no usage, so max_usd cannot be kept")

    def _connect(self) -> Any:
        if self._client is None:
            try:
                import openai
            except ImportError as error:
                raise EnvironmentMissing(
                    f"openai cannot be imported ({error}); run: pip install 'sieve-edge[judge]'"
                ) from error
            judge = self.settings
            key = os.environ.get(judge.api_key_env)
            if not key:
                named = shown_variable(judge.api_key_env, "the variable of api_key_env")
                raise EnvironmentMissing(f"judge {judge.model}: {named} is not set; set it to the key")
            self._client = openai.OpenAI(api_key=key, base_url=judge.base_url, timeout=judge.timeout_s, max_retries=0)
        return self._client

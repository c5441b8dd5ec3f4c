"""A model behind an OpenAI-compatible endpoint that says whether answers are correct; the only importer of openai.

Verdicts are kept on disk, so that nothing is asked twice. The key comes from the environment and goes nowhere else.
"""

import os
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
from sieve_edge.task.verdicts import VerdictBook
from sieve_edge.task_config import JudgeSettings

SYSTEM = (
    "You grade answers. You are given a question with its context, reference answers, and a candidate answer. Say "
    '"correct" if the candidate means the same as a reference, else "incorrect". Say one word only.'
)
QUESTION = "Question:\n{question}\n\nReference answers:\n{references}\n\nCandidate answer:\n{answer}\n\nVerdict:"
VERDICTS = {"correct": 1.0, "incorrect": 0.0}
UNJUDGED = float("nan")
_MILLION = 1e6
_FILTERED = "content_filter"
_TIMED_OUT = 408
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0


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
        self._found = 0
        self._asked = 0
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
        self._found += len(said)
        said |= self._ask_all({key: one for key, one in zip(keys, asked, strict=True) if key not in said})
        self._unjudged |= {key: words for key, words in said.items() if parse_verdict(words) is None}
        verdicts = [parse_verdict(said[key]) for key in keys]
        return [UNJUDGED if verdict is None else verdict for verdict in verdicts]

    def facts(self) -> dict[str, Any]:
        """Say what judging took since this was asked last, for a stage's manifest.

        Returns:
            Judge, verdicts asked for, verdicts that were on disk, refusals and other words that are no verdict; and of
            the whole build, calls with all tries, and money where prices are known.
        """
        refused = sum(not words.strip() for words in self._unjudged.values())
        silent = {"refused": refused, "unparsable": len(self._unjudged) - refused}
        calls, usd = self._book.spent()
        told: dict[str, Any] = {"model": self.settings.model, "base_url": self.settings.base_url}
        told |= {"asked": self._asked, "on_disk": self._found, **silent, "calls_of_build": calls}
        self._asked, self._found, self._unjudged = 0, 0, {}
        return told | ({"usd_of_build": round(usd, 6)} if self._priced() else {})

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
                words = self._ask(client, item[1])
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
        self._asked += len(missing)
        return dict(found for future in futures if (found := future.result()) is not None)

    def _ask(self, client: Any, one: Asked) -> str:
        """Ask, and again after faults that pass; every try counts as a call."""
        import openai

        judge = self.settings
        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)
        for number in range(judge.retries + 1):
            self._book.reserve(judge.max_calls, judge.max_usd, judge.model)
            try:
                reply = self._call(client, one)
                words = _words(reply)
            # What the endpoint says may repeat the key: only the status and the kind of error are passed on.
            except openai.AuthenticationError as error:
                told = f"the endpoint refuses the key, status {error.status_code}; set {judge.api_key_env}"
                raise EnvironmentMissing(f"judge {judge.model}: {told}") from None
            except openai.BadRequestError as error:
                if error.code == _FILTERED:
                    return ""
                raise self._failed(f"status {error.status_code}") from None
            except openai.OpenAIError as error:
                status = getattr(error, "status_code", None)
                if number == judge.retries or not (isinstance(error, passing) or status == _TIMED_OUT):
                    raise self._failed(f"status {status}" if status else type(error).__name__) from None
                time.sleep(_pause_s(error, number))
                continue
            except (ValueError, TypeError, AttributeError) as error:
                raise self._failed(type(error).__name__) from None
            self._spend(reply)
            return words
        raise AssertionError("the last try returns or raises")

    def _call(self, client: Any, one: Asked) -> Any:
        judge = self.settings
        references = "\n".join(f"- {each}" for each in one.references)
        question = QUESTION.format(question=one.question, references=references, answer=one.answer)
        return client.chat.completions.create(
            model=judge.model,
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            temperature=0,
            seed=judge.seed,
            **{judge.answer_limit: judge.max_answer_tokens},
        )

    def _failed(self, what: str) -> JudgeError:
        judge = self.settings
        return JudgeError(
            f"judge {judge.model}: no usable answer ({what}) after at most {judge.retries} retries; verdicts so far "
            "are kept, and the same command goes on from them"
        )

    def _priced(self) -> bool:
        judge = self.settings
        return None not in (judge.usd_per_million_prompt_tokens, judge.usd_per_million_answer_tokens)

    def _spend(self, reply: Any) -> None:
        if not self._priced():
            return
        usage, judge = getattr(reply, "usage", None), self.settings
        read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if read is None or written is None:
            if judge.max_usd is not None:
                raise JudgeError(f"judge {judge.model}: the endpoint tells no usage, so max_usd cannot be kept")
            return
        prices = (judge.usd_per_million_prompt_tokens or 0.0, judge.usd_per_million_answer_tokens or 0.0)
        self._book.spend((read * prices[0] + written * prices[1]) / _MILLION)

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


def _pause_s(error: Any, number: int) -> float:
    """Seconds before the next try: what the endpoint asks for, else twice as long each time."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        asked = headers.get(name, "")
        if asked.replace(".", "", 1).isdigit():
            return min(float(asked) * unit, _LONGEST_PAUSE_S)
    return min(_FIRST_PAUSE_S * 2.0**number, _LONGEST_PAUSE_S)


def parse_verdict(words: str) -> float | None:
    """Read a verdict.

    Args:
        words: What the judge said.

    Returns:
        1 for correct, 0 for incorrect; None for anything else.
    """
    return VERDICTS.get(words.strip().strip("\"'.!*").lower())


def _words(reply: Any) -> str:
    """Take the words out of a reply; a refusal, which has none, is an empty string."""
    choices = reply.choices
    if not choices:
        raise ValueError("no choices")
    words = choices[0].message.content
    return words if isinstance(words, str) else ""

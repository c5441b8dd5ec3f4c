"""A model behind an OpenAI-compatible endpoint that says whether answers are correct; the only importer of openai.

Verdicts are kept on disk, so that nothing is asked twice. The key comes from the environment and goes nowhere else.
"""

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from sieve_edge.errors import EnvironmentMissing, JudgeError
from sieve_edge.files import digest
from sieve_edge.protocols import Asked
from sieve_edge.task_config import JudgeSettings

SYSTEM = (
    "You grade answers. You are given a question with its context, reference answers, and a candidate answer. Say "
    '"correct" if the candidate means the same as a reference, else "incorrect". Say one word only.'
)
QUESTION = "Question:\n{question}\n\nReference answers:\n{references}\n\nCandidate answer:\n{answer}\n\nVerdict:"
VERDICTS = {"correct": 1.0, "incorrect": 0.0}
UNJUDGED = float("nan")
_ANSWER_TOKENS = 8
_MILLION = 1e6
_SCHEMA = "create table if not exists verdicts (key text primary key, said text not null)"


class OpenAIJudge:
    """Asks an endpoint; see ``Judge``.

    Attributes:
        counts: Calls made, and verdicts found on disk.
        usd: Money spent, where prices are known.
    """

    def __init__(self, settings: JudgeSettings, kept: Path) -> None:
        """Connect to nothing yet.

        Args:
            settings: Who judges, and the ceilings.
            kept: File of the verdicts.
        """
        self._settings = settings
        self._kept = kept
        self._lock = threading.Lock()
        self._client: Any = None
        self.counts: Counter[str] = Counter()
        self.usd = 0.0
        self._unjudged: dict[str, str] = {}

    @property
    def max_calls(self) -> int:
        """Calls that may be made."""
        return self._settings.max_calls

    def grade(self, asked: Sequence[Asked]) -> list[float]:
        """Judge answers; see ``Judge``. Calls that fail end it, and what was said before is kept.

        Args:
            asked: Answers with their questions.

        Returns:
            1 for correct, 0 for incorrect, not-a-number for anything else that the judge said.
        """
        keys = [self._key(one) for one in asked]
        said = self._read(keys)
        missing = {key: one for key, one in zip(keys, asked, strict=True) if key not in said}
        with self._lock:
            self.counts["on disk"] += len(set(keys)) - len(missing)
        said |= self._ask_all(missing)
        verdicts = [parse_verdict(said[key]) for key in keys]
        self._unjudged |= {key: words for key, words in said.items() if parse_verdict(words) is None}
        return [UNJUDGED if verdict is None else verdict for verdict in verdicts]

    def facts(self) -> dict[str, Any]:
        """Say what judging took, for a manifest.

        Returns:
            Judge, calls, verdicts found on disk, refusals and other words that are no verdict; money where prices are
            known.
        """
        refused = sum(not words.strip() for words in self._unjudged.values())
        silent = {"refused": refused, "unparsable": len(self._unjudged) - refused}
        told: dict[str, Any] = {"model": self._settings.model, "base_url": self._settings.base_url, **self.counts}
        return told | silent | ({"usd": round(self.usd, 6)} if self._priced() else {})

    def _key(self, one: Asked) -> str:
        judge = self._settings
        return digest(
            [judge.model, judge.base_url, judge.seed, SYSTEM, QUESTION, one.question, one.answer, *one.references]
        )

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
            except BaseException:
                stop.set()
                raise
            self._keep(item[0], words)
            return item[0], words

        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            futures = [pool.submit(ask, item) for item in missing.items()]
        for future in futures:
            error = future.exception()
            if error is not None:
                raise error
        return dict(found for future in futures if (found := future.result()) is not None)

    def _ask(self, client: Any, one: Asked) -> str:
        import openai

        judge = self._settings
        self._reserve()
        references = "\n".join(f"- {each}" for each in one.references)
        question = QUESTION.format(question=one.question, references=references, answer=one.answer)
        try:
            reply = client.chat.completions.create(
                model=judge.model,
                messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
                temperature=0,
                seed=judge.seed,
                max_tokens=_ANSWER_TOKENS,
            )
            words = _words(reply)
        # What the endpoint says may repeat the key: only the status and the kind of error are passed on.
        except openai.AuthenticationError as error:
            raise EnvironmentMissing(
                f"judge {judge.model}: the endpoint refuses the key, status {error.status_code}; set "
                f"{judge.api_key_env}"
            ) from None
        except openai.APIStatusError as error:
            raise self._failed(f"status {error.status_code}") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise self._failed(type(error).__name__) from None
        self._spend(reply)
        return words

    def _failed(self, what: str) -> JudgeError:
        judge = self._settings
        return JudgeError(
            f"judge {judge.model}: no usable answer ({what}) after {judge.retries} retries; the verdicts so far are "
            "kept, and the same command goes on from them"
        )

    def _reserve(self) -> None:
        """Count a call, or refuse it at a ceiling."""
        judge = self._settings
        with self._lock:
            if self.counts["calls"] >= judge.max_calls:
                raise JudgeError(f"judge {judge.model}: {judge.max_calls} calls made; raise the task's judge.max_calls")
            if judge.max_usd is not None and self.usd >= judge.max_usd:
                raise JudgeError(f"judge {judge.model}: {self.usd:.4f} USD spent, judge.max_usd is {judge.max_usd:g}")
            self.counts["calls"] += 1

    def _priced(self) -> bool:
        judge = self._settings
        return None not in (judge.usd_per_million_prompt_tokens, judge.usd_per_million_answer_tokens)

    def _spend(self, reply: Any) -> None:
        usage, judge = getattr(reply, "usage", None), self._settings
        if usage is None or not self._priced():
            return
        read = usage.prompt_tokens * (judge.usd_per_million_prompt_tokens or 0.0)
        written = usage.completion_tokens * (judge.usd_per_million_answer_tokens or 0.0)
        with self._lock:
            self.usd += (read + written) / _MILLION

    def _connect(self) -> Any:
        if self._client is None:
            try:
                import openai
            except ImportError as error:
                raise EnvironmentMissing(
                    f"openai cannot be imported ({error}); run: pip install 'sieve-edge[judge]'"
                ) from error
            judge = self._settings
            key = os.environ.get(judge.api_key_env)
            if not key:
                raise EnvironmentMissing(f"judge {judge.model}: {judge.api_key_env} is not set; set it to the key")
            self._client = openai.OpenAI(
                api_key=key, base_url=judge.base_url, timeout=judge.timeout_s, max_retries=judge.retries
            )
        return self._client

    def _read(self, keys: Sequence[str]) -> dict[str, str]:
        if not self._kept.is_file():
            return {}
        with closing(sqlite3.connect(self._kept)) as table:
            rows = (table.execute("select said from verdicts where key = ?", (key,)).fetchone() for key in keys)
            return {key: row[0] for key, row in zip(keys, rows, strict=True) if row is not None}

    def _keep(self, key: str, words: str) -> None:
        with self._lock:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._kept)) as table, table:
                table.execute(_SCHEMA)
                table.execute("insert or replace into verdicts values (?, ?)", (key, words))


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

"""What was scored: the log of one search, and the cache that searches on the same inputs share.

Both are JSON lines that are only appended to, so a killed search loses at most the candidate under way.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sieve_edge.files import append_jsonl, read_jsonl
from sieve_edge.model.levels import Ranks
from sieve_edge.progress import Progress
from sieve_edge.search.space import plan_id

Key = tuple[str, str]
"""``(plan id, rung)``."""


class History:
    """Records of finished scores, by plan and rung."""

    def __init__(self, log: Path, cache: Path, progress: Progress) -> None:
        """Read what is there.

        Args:
            log: Log of this search.
            cache: Cache shared by searches whose scores are comparable: same model, bank, examples and settings.
            progress: Told of a torn line.
        """
        self._log, self._cache = log, cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        self.records: dict[Key, dict[str, Any]] = {}
        self._cached: dict[Key, dict[str, Any]] = {}
        for file, records in ((cache, self._cached), (log, self.records)):
            found, torn = read_jsonl(file)
            if torn:
                progress.warn(f"  {file.name}: the last line was torn and is dropped; its candidate is scored again")
            for record in found:
                records[record["plan"], record["rung"]] = record

    def find(self, ranks: Ranks, rung: str) -> dict[str, Any] | None:
        """Look a score up, in this search's log or else in the cache.

        Args:
            ranks: The candidate.
            rung: Which score.

        Returns:
            The record, which is in the log from now on; None if there is none.
        """
        key = (plan_id(ranks), rung)
        if key not in self.records and key in self._cached:
            self._write(self._log, self._cached[key], self.records)
        return self.records.get(key)

    def add(self, ranks: Ranks, rung: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append a score to the log and to the cache.

        Args:
            ranks: The candidate.
            rung: Which score.
            values: What came out.

        Returns:
            The record.
        """
        record = {"plan": plan_id(ranks), "rung": rung, "ranks": dict(ranks), **values}
        self._write(self._cache, record, self._cached)
        self._write(self._log, record, self.records)
        return record

    def _write(self, file: Path, record: dict[str, Any], records: dict[Key, dict[str, Any]]) -> None:
        append_jsonl(file, record)
        records[record["plan"], record["rung"]] = record

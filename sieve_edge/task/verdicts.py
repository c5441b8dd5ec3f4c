"""What a judge said, and what it cost, on disk: SQLite, which survives a kill at any moment."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from sieve_edge.errors import JudgeError

_SCHEMA = """
create table if not exists verdicts (key text primary key, said text not null);
create table if not exists spent (build text primary key, calls integer not null, usd real not null);
"""
_BUSY_S = 30.0


class VerdictBook:
    """Verdicts that builds share, and the ceilings of one of them. Safe for threads and for several processes."""

    def __init__(self, file: Path, build: str) -> None:
        """Open nothing yet.

        Args:
            file: Database; made when something is written.
            build: What calls and money are counted for.
        """
        self._file = file
        self._build = build
        self._lock = threading.Lock()

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """Look verdicts up.

        Args:
            keys: Keys of answers.

        Returns:
            Key -> what the judge said; keys that are not known are left out.
        """
        if not self._file.is_file():
            return {}
        with self._table() as table:
            rows = (table.execute("select said from verdicts where key = ?", (key,)).fetchone() for key in keys)
            return {key: row[0] for key, row in zip(keys, rows, strict=True) if row is not None}

    def keep(self, key: str, words: str) -> None:
        """Keep a verdict.

        Args:
            key: Key of the answer.
            words: What the judge said.
        """
        with self._table() as table:
            table.execute("insert or replace into verdicts values (?, ?)", (key, words))

    def spent(self) -> tuple[int, float]:
        """Say what this build spent so far.

        Returns:
            ``(calls, USD)``.
        """
        if not self._file.is_file():
            return 0, 0.0
        with self._table() as table:
            return self._spent(table)

    def reserve(self, max_calls: int, max_usd: float | None, usd: float, judge: str) -> None:
        """Count a call, and set its money aside, before it is made.

        What was set aside for a call that a kill cut short stays spent, since nobody knows what it cost.

        Args:
            max_calls: Ceiling of calls.
            max_usd: Ceiling of money; None for none.
            usd: Most that the call may cost.
            judge: Name of the judge, for people.

        Raises:
            JudgeError: If the call might exceed a ceiling.
        """
        with self._lock, self._table() as table:
            # Other processes wait here, so that no two of them take the same last call or cent.
            table.execute("begin immediate")
            calls, spent = self._spent(table)
            if calls >= max_calls:
                raise JudgeError(f"judge {judge}: {calls} calls made; raise the task's judge.max_calls")
            if max_usd is not None and spent + usd > max_usd:
                raise JudgeError(
                    f"judge {judge}: {spent:.4f} USD spent or set aside for calls, the next one may cost {usd:.4f}, "
                    f"judge.max_usd is {max_usd:g}; raise it"
                )
            self._add(table, 1, usd)

    def settle(self, usd: float) -> None:
        """Correct the money that was set aside for a call.

        Args:
            usd: What it cost beyond that; mostly negative.
        """
        with self._lock, self._table() as table:
            self._add(table, 0, usd)

    def _spent(self, table: sqlite3.Connection) -> tuple[int, float]:
        row = table.execute("select calls, usd from spent where build = ?", (self._build,)).fetchone()
        return (0, 0.0) if row is None else (int(row[0]), float(row[1]))

    def _add(self, table: sqlite3.Connection, calls: int, usd: float) -> None:
        told = "insert into spent values (?, ?, ?) on conflict do update set calls = calls + ?, usd = usd + ?"
        table.execute(told, (self._build, calls, usd, calls, usd))

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=_BUSY_S)) as table, table:
                table.executescript(_SCHEMA)
                yield table
        except (sqlite3.Error, OSError) as error:
            raise JudgeError(f"{self._file}: cannot read or keep verdicts ({error}); is the disk full?") from error

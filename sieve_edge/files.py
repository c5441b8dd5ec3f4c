"""Files that are never half there: atomic JSON, durable JSON lines, hashes, and a disk that refuses.

Everything here runs without torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sieve_edge.errors import ArtifactError


def digest(value: Any) -> str:
    """Hash JSON-compatible data.

    Args:
        value: Anything ``json.dumps`` takes.

    Returns:
        SHA-256, hexadecimal.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: File to read.

    Returns:
        SHA-256, hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never a part.

    Args:
        path: File to write; its folder exists.
        value: JSON-compatible data.
    """
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote.

    Args:
        path: File to read.

    Returns:
        The parsed value.

    Raises:
        ArtifactError: If the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; delete its folder and run the build again") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); delete its folder and run the build again") from error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only file system into an error with one clear line.

    Args:
        path: What is being written; named in the message.

    Yields:
        Nothing.

    Raises:
        ArtifactError: If the disk refuses.
        OSError: Any other error, unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        folder = next(parent for parent in (path, *path.parents) if parent.exists())
        free_mib = shutil.disk_usage(folder).free / 2**20
        raise ArtifactError(
            f"{path}: cannot write ({error.strerror}, {free_mib:.0f} MiB free); free space there or choose another "
            "--run-dir; finished stages are kept"
        ) from error


@contextlib.contextmanager
def alone(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Do what one process at a time may do; who is killed holds nobody up.

    Args:
        path: Lock file.
        busy: Called if another process is at it; raises, or returns to wait for that one.

    Yields:
        Nothing.
    """
    # Here, since a device that only measures has no need of it.
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record durably, so that a killed run keeps it.

    Args:
        path: JSON-lines file.
        record: JSON-compatible data.
    """
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Read records that were appended, dropping a torn last line from the file.

    Args:
        path: JSON-lines file, which may be missing.

    Returns:
        ``(records, torn)``; ``torn`` says that an incomplete last line was dropped.

    Raises:
        ArtifactError: If another line than the last is broken.
    """
    if not path.is_file():
        return [], False
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    good_bytes = 0
    for number, line in enumerate(lines, 1):
        try:
            records.append(_parse_line(line))
        except ValueError as error:
            if number < len(lines):
                raise ArtifactError(f"{path}: line {number} is not JSON ({error}); delete the file") from error
            os.truncate(path, good_bytes)
            return records, True
        good_bytes += len(line)
    return records, False


def _parse_line(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("no newline")
    record: dict[str, Any] = json.loads(line)
    return record

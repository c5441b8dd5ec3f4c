"""Runs ``sieve-edge`` as a user does: in a process of its own."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def command(*words: object, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, forked from a process that has the slow imports behind it; with a prefix, afresh."""
    said = list(map(str, words))
    if prefix:
        asked = [*prefix, sys.executable, "-m", "sieve_edge.cli", *said]
        return subprocess.run(asked, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: Path(folder) / name for name in ("stdout", "stderr")}
        paths = {name: str(file) for name, file in streams.items()}
        code = _ask({"words": said, "folder": os.getcwd(), "environment": ENVIRONMENT, **paths})
        texts = {name: file.read_text(encoding="utf-8") for name, file in streams.items()}
    return subprocess.CompletedProcess(["sieve-edge", *said], code, **texts)


@functools.cache
def _warm() -> subprocess.Popen[str]:
    """Start what commands are forked from; it ends with these tests, when its standard input does."""
    asked = [sys.executable, "-m", "tests.warm"]
    return subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def _ask(request: dict[str, Any]) -> int:
    warm = _warm()
    assert warm.stdin is not None
    assert warm.stdout is not None
    warm.stdin.write(json.dumps(request) + "\n")
    warm.stdin.flush()
    return int(warm.stdout.readline())


def start(*words: object) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "sieve_edge.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads yet)
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Parse the last line of standard output."""
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document

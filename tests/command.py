"""Runs ``sieve-edge`` as a user does: in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def command(*words: object, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "sieve_edge.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )


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

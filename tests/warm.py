"""Starts commands in processes that have imported the slow libraries already: ``python -m tests.warm``.

Importing torch and transformers takes longer than most commands on a pico model. This process imports them once and
forks for each request, a JSON line on standard input; it answers with the exit code, a line on standard output.
"""

import json
import os
import sys
import traceback
from typing import Any

from sieve_edge.cli import main as run_command

SLOW = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.modeling_utils",
    "scipy.optimize",
    "onnx",
)


def main() -> None:
    """Serve until standard input ends."""
    for name in SLOW:
        __import__(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _be(json.loads(line))
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _be(request: dict[str, Any]) -> None:
    """Become the command: its own streams, working folder and arguments, and a normal end of the interpreter."""
    for descriptor, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    # What is left of the requests stays the parent's.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (for the whole process)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["sieve-edge", *request["words"]]
    try:
        run_command()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The parent's side of the worker: starts it, here or on a device, passes progress on, and brings its errors back."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from sieve_edge.config import Target
from sieve_edge.errors import ArtifactError, ConnectionLost, EnvironmentMissing, SieveError
from sieve_edge.protocols import Progress

LOST = 255
"""Exit code of ssh when it is the connection that failed."""

_ERRORS: dict[int, type[SieveError]] = {EnvironmentMissing.exit_code: EnvironmentMissing}


def runtime_fields(target: Target, accelerated: bool) -> dict[str, Any]:
    """Say how a worker opens a target's files.

    Args:
        target: The device.
        accelerated: Whether the accelerator that the target asks for is to be used.

    Returns:
        Fields of a worker job.
    """
    provider = target.execution_provider if accelerated else "CPUExecutionProvider"
    layers = target.gpu_layers if accelerated else 0
    # Only where it matters, so that what was measured without it keeps its name.
    half = {"half": True} if provider == "TensorrtExecutionProvider" and target.quantization == "F16" else {}
    return {"runtime": target.runtime, "threads": target.threads, "provider": provider, "gpu_layers": layers, **half}


def run_worker(
    job: Mapping[str, Any],
    progress: Progress | None = None,
    command: Sequence[str] = (sys.executable, "-m", "sieve_edge.device.worker"),
    head: bytes = b"",
) -> dict[str, Any]:
    """Do one job in a fresh process; may be interrupted, which ends that process too.

    Args:
        job: The job, see ``sieve_edge.device.worker``; JSON-compatible.
        progress: Told of each unit that the worker finishes.
        command: What starts the worker.
        head: What it reads before the job.

    Returns:
        The worker's result.
    """
    # Files, not pipes, for what may be larger than a pipe's buffer: nobody waits for anybody.
    with tempfile.TemporaryFile() as job_file, tempfile.TemporaryFile("w+") as result_file:
        job_file.write(head + json.dumps(job).encode())
        job_file.seek(0)
        with subprocess.Popen(
            command, stdin=job_file, stdout=result_file, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            try:
                last_line = _follow(process.stderr, progress)
                code = process.wait()
            finally:
                process.kill()
        result_file.seek(0)
        return _result(job, result_file.read(), code, last_line)


def _follow(stream: IO[str] | None, progress: Progress | None) -> str:
    done = 0
    last_line = ""
    for line in stream or ():
        try:
            finished = json.loads(line)["done"]
        except (ValueError, TypeError, KeyError):
            last_line = line.strip() or last_line
            continue
        if progress:
            progress(finished - done)
        done = finished
    return last_line


def _result(job: Mapping[str, Any], output: str, code: int, last_line: str) -> dict[str, Any]:
    lines = output.splitlines()
    try:
        result = json.loads(lines[-1] if lines else "")
    except ValueError:
        result = None
    if isinstance(result, dict) and "error" in result:
        # What the device's side says of itself has no code.
        raise _ERRORS.get(result.get("exit_code", SieveError.exit_code), SieveError)(result["error"])
    if code == 0 and isinstance(result, dict):
        return result
    if code == LOST:
        raise ConnectionLost(f"worker for '{job.get('job')}': {last_line or 'the connection is lost'}")
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    where = job.get("folder") or job.get("folders")
    raise ArtifactError(f"worker for '{job.get('job')}' of {where} died ({how}{hint}): {last_line or 'no message'}")

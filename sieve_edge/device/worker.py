"""The worker process: ``python -m sieve_edge.device.worker`` does one job in a fresh process, without torch.

It reads one JSON job from standard input and writes one JSON result as the last line of standard output. On
standard error it reports progress, one ``{"done": n, "total": m}`` a line. An error that a user can fix comes back
as ``{"error": message, "exit_code": n}``.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from sieve_edge.config import PositiveInt, Strict
from sieve_edge.device.reference import REFERENCE, drift, reference_tokens
from sieve_edge.device.runtimes import Runtime, open_tokenizer, scoring_tokens
from sieve_edge.device.times import TimedMatrix
from sieve_edge.device.timing import time_models, timed_decode, timed_prefill
from sieve_edge.errors import ArtifactError, ConfigError, EnvironmentMissing, SieveError
from sieve_edge.protocols import Progress
from sieve_edge.task.generate import Ending, answer_greedily
from sieve_edge.task.likelihood import label_log_likelihoods

STATUS = Path("/proc/self/status")
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Job(Strict):
    runtime: str
    threads: PositiveInt
    provider: str
    gpu_layers: Annotated[int, Field(ge=0)] = 0
    half: bool = False

    def opener(self) -> Runtime:
        """Say how folders are run."""
        return Runtime(self.runtime, self.threads, self.provider, self.gpu_layers, self.half)


class ScoreJob(_Job):
    """Score every label of every prompt."""

    job: Literal["score"]
    folder: Path
    prompts: Annotated[list[Tokens], Field(min_length=1)]
    answers: Annotated[list[Tokens], Field(min_length=1)]
    batch_tokens: PositiveInt


class WriteJob(_Job):
    """Let the model answer every prompt."""

    job: Literal["write"]
    folder: Path
    prompts: Annotated[list[Tokens], Field(min_length=1)]
    new_tokens: PositiveInt
    stop: list[str]
    ends: tuple[int, ...]
    batch_tokens: PositiveInt


class TimeJob(_Job):
    """Time several folders against each other; ratios are to the first."""

    job: Literal["time"]
    folders: Annotated[dict[str, Path], Field(min_length=1)]
    prompts: dict[str, Tokens]
    answer_tokens: PositiveInt
    decode_tokens: PositiveInt
    repeats: PositiveInt
    seed: int


class MemoryJob(_Job):
    """Answer one prompt and say how much memory that took."""

    job: Literal["memory"]
    folder: Path
    prompt: Tokens
    answer_tokens: PositiveInt


class ReferenceJob(_Job):
    """Compare with the inputs and logits that the export stored; loading alone shows that the runtime can."""

    job: Literal["reference"]
    folder: Path
    exact: bool


class ProfileJob(_Job):
    """Time matrices of a model, and the dense model that has them."""

    job: Literal["profile"]
    folder: Path
    prompt: Tokens
    matrices: Annotated[list[TimedMatrix], Field(min_length=1)]
    layers: PositiveInt
    decode_tokens: PositiveInt
    repeats: PositiveInt
    quantization: str


Job = Annotated[ScoreJob | WriteJob | TimeJob | MemoryJob | ReferenceJob | ProfileJob, Field(discriminator="job")]


def main() -> int:
    """Do the job on standard input.

    Returns:
        Exit code: 0, or that of the error.
    """
    code = 0
    try:
        result = do_job(sys.stdin.read())
    except SieveError as error:
        result = {"error": str(error), "exit_code": error.exit_code}
        code = error.exit_code
    sys.stdout.write(json.dumps(result) + "\n")
    return code


def do_job(text: str) -> dict[str, Any]:
    """Do one job.

    Args:
        text: The job, JSON.

    Returns:
        Its result, JSON-compatible.

    Raises:
        ConfigError: If the job is not one; all problems at once.
    """
    try:
        job: Any = TypeAdapter(Job).validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors()]
        raise ConfigError("worker job", problems) from error
    jobs: dict[str, Callable[[Any], dict[str, Any]]] = {
        "score": _score,
        "write": _write,
        "time": _time,
        "memory": _memory,
        "reference": _reference,
        "profile": _profile,
    }
    return jobs[job.job](job)


def _score(job: ScoreJob) -> dict[str, Any]:
    model = job.opener().open(job.folder, scoring_tokens(job.prompts, job.answers, job.batch_tokens))
    scores_NK = label_log_likelihoods(model, job.prompts, job.answers, job.batch_tokens, _reporter(len(job.prompts)))
    broken = int((~np.isfinite(scores_NK)).sum())
    if broken:
        raise ArtifactError(f"{job.folder}: {broken} of {scores_NK.size} label scores are not finite")
    return {"answers": scores_NK.tolist()}


def _write(job: WriteJob) -> dict[str, Any]:
    tokenizer = open_tokenizer(job.folder)
    ending = Ending(tokenizer, job.ends, tuple(job.stop))
    longest = max(map(len, job.prompts)) + job.new_tokens
    model = job.opener().open(job.folder, longest + max(longest, job.batch_tokens))
    report = _reporter(len(job.prompts))
    answers = answer_greedily(model, job.prompts, job.new_tokens, ending.reached, job.batch_tokens, report)
    return {"answers": [ending.text(ids) for ids in answers]}


def _time(job: TimeJob) -> dict[str, Any]:
    # The pasts of two repeats are there at a time.
    longest = max(map(len, job.prompts.values()))
    tokens = 2 * (longest + max(job.decode_tokens, job.answer_tokens))
    models = {name: job.opener().open(folder, tokens) for name, folder in job.folders.items()}
    timings = time_models(
        models,
        job.prompts,
        job.answer_tokens,
        job.decode_tokens,
        job.repeats,
        np.random.default_rng(job.seed),
        _reporter(job.repeats),
    )
    return {name: asdict(timing) for name, timing in timings.items()}


def _memory(job: MemoryJob) -> dict[str, Any]:
    baseline_mib = _memory_mib("VmRSS")
    model = job.opener().open(job.folder, len(job.prompt) + job.answer_tokens)
    _, token, past = timed_prefill(model, job.prompt)
    timed_decode(model, token, past, len(job.prompt), job.answer_tokens - 1)
    _reporter(1)(1)
    return {"peak_mib": _memory_mib("VmHWM"), "baseline_mib": baseline_mib}


def _reference(job: ReferenceJob) -> dict[str, Any]:
    file = job.folder / REFERENCE
    model = job.opener().open(job.folder, reference_tokens(file), job.exact)
    measured = drift(model, file)
    if not np.isfinite(measured.max_difference):
        raise ArtifactError(f"{job.folder}: a logit of the reference inputs is not finite")
    _reporter(1)(1)
    return {**asdict(measured), "providers": model.providers}


def _profile(job: ProfileJob) -> dict[str, Any]:
    from sieve_edge.device.profile import measure

    report = _reporter(len(job.matrices) + job.repeats)
    settings = (job.opener(), job.quantization, job.folder, job.prompt, job.matrices, job.layers)
    times, dense = measure(*settings, job.decode_tokens, job.repeats, report)
    return {"times": times, "dense": dense}


def _memory_mib(name: str) -> float:
    # Not ru_maxrss: that one starts at the peak of the process that started this one.
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.is_file() else []
    for line in lines:
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise EnvironmentMissing(f"{STATUS} has no {name}; peak memory can be measured on Linux only")


def _reporter(total: int) -> Progress:
    done = 0

    def report(units: int) -> None:
        nonlocal done
        done += units
        sys.stderr.write(json.dumps({"done": done, "total": total}) + "\n")
        sys.stderr.flush()

    return report


if __name__ == "__main__":
    sys.exit(main())

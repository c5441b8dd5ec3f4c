"""The time table that time limits need: measured once for a machine, a target and a search space."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sieve_edge.config import Target
from sieve_edge.device.process import run_worker
from sieve_edge.device.profile import machine_facts
from sieve_edge.device.times import TimedMatrix, TimeTable, make_table
from sieve_edge.files import digest, read_json, write_json
from sieve_edge.progress import Progress
from sieve_edge.search.budgets import timed_matrix
from sieve_edge.search.space import SearchSpace

TIMES_SCHEMA = 1
"""Rises when what a time means changes."""


def time_table(
    space: SearchSpace,
    prompt_ids: Sequence[int],
    target: Target,
    model_sha256: str,
    dense: Path | Callable[[Path], object],
    shared: Path,
    out: Path,
    progress: Progress,
) -> TimeTable:
    """Read the time table, or measure it on this machine and keep it.

    May be interrupted: the table is written when it is whole. Measuring runs in a process of its own.

    Args:
        space: Search space; its ranks are measured.
        prompt_ids: Prompt of the length that is timed.
        target: The device: threads, provider, repeats.
        model_sha256: Hash of the dense model.
        dense: The dense model as an exported folder, or what writes its graph into a folder.
        shared: Folder of what runs share.
        out: Work folder; holds the dense model while it is measured.
        progress: Where progress is shown.

    Returns:
        The table.
    """
    matrices, machine = space_matrices(space), machine_facts()
    job = {
        "matrices": [asdict(matrix) for matrix in matrices],
        "threads": target.threads,
        "runtime": target.runtime,
        "provider": target.execution_provider,
        "layers": len({spec.layer for spec in space.specs}),
        "repeats": target.workload.repeats,
    }
    key = digest([TIMES_SCHEMA, model_sha256, machine, len(prompt_ids), job])
    written, file = out / "dense", shared / f"times-{key[:16]}.json"
    # An interrupted run may have left it.
    shutil.rmtree(written, ignore_errors=True)
    if file.is_file():
        progress.say(f"  time table: {file.name}, measured before")
        return TimeTable.from_json(read_json(file), str(file))
    progress.say(f"  time table: {len(matrices)} matrices, threads: {target.threads}; to be kept as {file.name}")
    try:
        result = _measured({**job, "prompt": list(prompt_ids)}, dense, written, progress)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    times = {matrix: (prefill, decode) for matrix, (prefill, decode) in zip(matrices, result["times"], strict=True)}
    counts = Counter(timed_matrix(spec, None, space.storage) for spec in space.specs)
    settings = (target.threads, target.execution_provider, len(prompt_ids))
    table = make_table(times, tuple(result["dense"]), counts, machine, *settings)
    shared.mkdir(parents=True, exist_ok=True)
    write_json(file, table.to_json())
    return table


def space_matrices(space: SearchSpace) -> list[TimedMatrix]:
    """List what a time table of a search space holds.

    Args:
        space: Search space.

    Returns:
        Every different matrix, dense and at each of its ranks.
    """
    found = {
        timed_matrix(spec, rank, space.storage): None
        for spec, choices in zip(space.specs, space.levels, strict=True)
        for rank in (None, *(level.rank for level in choices))
    }
    return list(found)


def _measured(
    job: Mapping[str, Any], dense: Path | Callable[[Path], object], written: Path, progress: Progress
) -> dict[str, Any]:
    folder = dense if isinstance(dense, Path) else written
    if not isinstance(dense, Path):
        progress.say("  writing the dense model for the time table")
        written.mkdir()
        dense(written)
    with progress.task("measure", len(job["matrices"]) + job["repeats"], "steps") as advance:
        return run_worker({"job": "profile", "folder": str(folder), **job}, advance)

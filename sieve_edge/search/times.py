"""The time table that time limits need: measured once for a machine, a target and a search space."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sieve_edge.config import Target
from sieve_edge.device.place import Place, open_place
from sieve_edge.device.process import runtime_fields
from sieve_edge.device.times import TimedMatrix, TimeTable, make_table
from sieve_edge.files import digest, read_json, write_json
from sieve_edge.progress import Progress
from sieve_edge.search.budgets import timed_matrices
from sieve_edge.search.space import SearchSpace

TIMES_SCHEMA = 3
"""Rises when what a time means changes."""

_GRAPH_PACKAGES = {"onnx": ("onnx",), "gguf": ()}
_MACHINE = ("model", "processor", "machine", "cores", "packages")
"""Facts of a device that times depend on, beside the target's settings."""


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
    """Read the time table, or measure it on the target's device and keep it.

    May be interrupted: the table is written when it is whole. Measuring runs in a process of its own.

    Args:
        space: Search space; its ranks are measured.
        prompt_ids: Prompt of the length that is timed.
        target: The device: connection, threads, provider, quantization, repeats.
        model_sha256: Hash of the dense model.
        dense: The dense model as an exported folder, or what writes one.
        shared: Folder of what runs share.
        out: Work folder; holds the dense model while it is measured.
        progress: Where progress is shown.

    Returns:
        The table.
    """
    matrices, written = space_matrices(space), out / "dense"
    folders = {"dense": dense if isinstance(dense, Path) else written}
    place = open_place(
        target, shared / f"times-{target.name}", folders, shared, progress, _GRAPH_PACKAGES[target.format]
    )
    facts = place.facts()
    machine = {name: facts[name] for name in _MACHINE}
    job = {
        "matrices": [asdict(matrix) for matrix in matrices],
        "layers": len({spec.layer for spec in space.specs}),
        "decode_tokens": target.workload.decode_tokens,
        "repeats": target.workload.repeats,
        "quantization": target.quantization,
    }
    key = digest([TIMES_SCHEMA, model_sha256, machine, len(prompt_ids), runtime_fields(target, True), job])
    file = shared / f"times-{key[:16]}.json"
    # An interrupted run may have left it.
    shutil.rmtree(written, ignore_errors=True)
    if file.is_file():
        progress.say(f"  time table: {file.name}, measured before")
        return TimeTable.from_json(read_json(file), str(file))
    progress.say(f"  time table: {len(matrices)} matrices, threads: {target.threads}; to be kept as {file.name}")
    shared.mkdir(parents=True, exist_ok=True)
    try:
        result = _measured({**job, "prompt": list(prompt_ids)}, place, dense, folders["dense"], progress)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    times = {matrix: (prefill, decode) for matrix, (prefill, decode) in zip(matrices, result["times"], strict=True)}
    counts = Counter(matrix for spec in space.specs for matrix in timed_matrices(spec, None, space.storage))
    settings = (target.threads, target.execution_provider, target.quantization, len(prompt_ids))
    table = make_table(times, tuple(result["dense"]), counts, machine, *settings)
    write_json(file, table.to_json())
    return table


def space_matrices(space: SearchSpace) -> list[TimedMatrix]:
    """List what a time table of a search space holds.

    Args:
        space: Search space.

    Returns:
        Every different matrix, dense and at each of its ranks or widths.
    """
    found = {
        matrix: None
        for spec, choices in zip(space.specs, space.levels, strict=True)
        for rank in (None, *(level.rank for level in choices))
        for matrix in timed_matrices(spec, rank, space.storage)
    }
    return list(found)


def _measured(
    job: Mapping[str, Any], place: Place, dense: Path | Callable[[Path], object], folder: Path, progress: Progress
) -> dict[str, Any]:
    if not isinstance(dense, Path):
        progress.say("  writing the dense model for the time table")
        folder.mkdir()
        dense(folder)
    with place, progress.task("measure", len(job["matrices"]) + job["repeats"], "steps") as advance:
        return place.run({"job": "profile", "folder": str(folder), **job}, advance)

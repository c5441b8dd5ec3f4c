"""Runs the stages in order, each only if its artifact is missing or stale."""

import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

from sieve_edge import STAGES, Stage
from sieve_edge.artifacts import MANIFEST, Manifest, describe_outputs, is_current, read_manifest, verify, write_manifest
from sieve_edge.errors import ArtifactError
from sieve_edge.files import alone, digest, disk_errors
from sieve_edge.foresight import tell_judging
from sieve_edge.resolve import check_packages
from sieve_edge.run import Run, stage_settings
from sieve_edge.stages import STAGE_FUNCTIONS, Result
from sieve_edge.task.examples import splits_sha256

PACKAGES = (
    "sieve-edge",
    "torch",
    "transformers",
    "peft",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "llama-cpp-python",
)


def build(run: Run, until: str) -> dict[str, Manifest]:
    """Run the stages up to one, each only if it is not current.

    May be interrupted at any moment; the same call goes on where it stopped. What several runs share is made by one
    of them, the others wait for it. Another build at work in the same folder is an ``ArtifactError``.

    Args:
        run: What to build.
        until: Last stage to run.

    Returns:
        Stage -> its manifest.
    """
    verbs = [stage.verb for stage in STAGES]
    wanted = STAGES[: verbs.index(until) + 1]
    inputs = {"model": run.source.sha256(), "splits": digest(splits_sha256(run.scored_splits))}

    def busy() -> None:
        raise ArtifactError(f"{run.root}: another build works in it; wait for its end, or choose another --run-dir")

    with alone(run.root / ".lock", busy), run.progress.kept_in(run.root):
        return _run_stages(run, wanted, inputs)


def _run_stages(run: Run, wanted: Sequence[Stage], inputs: Mapping[str, str]) -> dict[str, Manifest]:
    manifests: dict[str, Manifest] = {}
    ahead: Sequence[str] | None = None
    for number, stage in enumerate(wanted, 1):
        mine = {**inputs, **{verb: digest(manifests[verb].outputs) for verb in stage.reads}}
        settings = stage_settings(stage.verb, run)
        key = digest([stage.verb, stage.schema, mine, settings, run.recipe.seed])
        place = _place(run, stage, key)
        current = is_current(place, key)
        run.progress.stage(number, len(wanted), stage.verb, stage.writes, current)
        if not current:
            for verb in stage.reads:
                verify(run.folder(verb))
            if ahead is None:
                # Once, before the first stage that has something to do: what is done needs no package and no judge.
                ahead = [later.verb for later in wanted[number - 1 :]]
                check_packages(run.recipe, ahead)
                tell_judging(run, ahead)
            with _turn(run, place):
                if not is_current(place, key):
                    _run_stage(run, stage, key, mine, settings, place, STAGE_FUNCTIONS[stage.verb])
        _link(run, stage, place)
        manifests[stage.verb] = read_manifest(place)
    return manifests


def _run_stage(
    run: Run,
    stage: Stage,
    key: str,
    inputs: dict[str, str],
    settings: dict[str, Any],
    place: Path,
    function: Callable[[Run, Path], Result],
) -> None:
    work = place.with_name(f".{place.name}.{key[:16]}.work")
    if not (work / MANIFEST).is_file():
        started = time.monotonic()
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
            metrics, fallbacks = function(run, work)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for fallback in fallbacks:
            run.progress.warn(f"  fallback: {fallback}")
        manifest = Manifest(
            stage=stage.verb,
            key=key,
            inputs=inputs,
            settings=settings,
            seed=run.recipe.seed,
            versions=_versions(),
            seconds=round(time.monotonic() - started, 1),
            outputs=describe_outputs(work),
            metrics={**metrics, "process_peak_memory_mib": round(peak_mib)},
            fallbacks=fallbacks,
        )
        write_manifest(work, manifest)
        run.progress.stage_done(stage.verb, manifest.seconds)
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    work.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    for stale in place.parent.glob(f".{place.name}.*.work"):
        shutil.rmtree(stale)


def _place(run: Run, stage: Stage, key: str) -> Path:
    """Shared stages lie beside the runs, by key; the others inside the run."""
    return run.root.parent / "shared" / f"{stage.verb}-{key[:16]}" if stage.shared else run.folder(stage.verb)


def _turn(run: Run, place: Path) -> AbstractContextManager[None]:
    told = f"  another build makes {place}: waiting for it"
    return alone(place.with_name(f".{place.name}.lock"), lambda: run.progress.say(told))


def _link(run: Run, stage: Stage, place: Path) -> None:
    if not stage.shared:
        return
    link = run.folder(stage.verb)
    target = os.path.relpath(place, link.parent)
    if link.is_symlink() and str(link.readlink()) == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    part = link.with_name(f".{link.name}.link")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

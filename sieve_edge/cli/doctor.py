"""``sieve-edge doctor``: what this machine has, and what each shipped target would need."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Column, Table

from sieve_edge.config import Target
from sieve_edge.device.llama_refusals import PATCHED
from sieve_edge.errors import SieveError
from sieve_edge.resolve import load_target, load_task, package_file, shipped_targets

_MIB = 2**20
_EXTRA_REQUIREMENT = re.compile(r"""^(?P<package>[\w.-]+).*;.*\bextra == ["'](?P<extra>[\w-]+)["']""")
_GPU_SECONDS = 20


@click.command()
def doctor() -> None:
    """Show what this machine has, and what each shipped target would need."""
    facts = inspect_machine()
    console = Console(stderr=True, markup=False, highlight=False)
    for table in _tables(facts):
        console.print(table)
    click.echo(json.dumps(facts, separators=(",", ":")))


def inspect_machine() -> dict[str, Any]:
    """Look at the machine and the environment, without importing torch or a runtime.

    Returns:
        JSON-compatible: ``machine``, ``extras`` (package -> version or None) and ``targets`` (what is
        missing -> how to get it).
    """
    extras = _extras()
    gpus = _gpus()
    return {
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mib": psutil.virtual_memory().total // _MIB,
            "memory_available_mib": psutil.virtual_memory().available // _MIB,
            "disk_free_mib": shutil.disk_usage(Path.cwd()).free // _MIB,
            "gpus": gpus,
            "python": platform.python_version(),
        },
        "extras": extras,
        "targets": {name: _missing(load_target(str(file)), extras, gpus) for name, file in shipped_targets().items()},
    }


def _extras() -> dict[str, dict[str, str | None]]:
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in metadata.requires("sieve-edge") or []:
        match = _EXTRA_REQUIREMENT.match(requirement)
        if match:
            extras.setdefault(match["extra"], {})[match["package"]] = _version(match["package"])
    return extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_GPU_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        return [f"unusable: {error}"]
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _missing(target: Target, extras: dict[str, dict[str, str | None]], gpus: list[str]) -> dict[str, str]:
    missing = {}
    # An accelerator is needed where this machine is the device; elsewhere its processor stands in.
    here = target.connection == "local" and target.accelerated
    runtime = "gguf" if target.format == "gguf" else "onnx-gpu" if here else "onnx"
    for extra in ("torch", runtime):
        lacking = [package for package, version in extras.get(extra, {}).items() if version is None]
        if lacking:
            missing[f"{', '.join(lacking)} (extra {extra})"] = (
                f"scripts/setup.sh {extra}, or pip install sieve-edge[{extra}]"
            )
    llama = extras.get("gguf", {}).get("llama-cpp-python")
    if target.runtime == "llama.cpp" and llama is not None and PATCHED not in llama:
        missing["llama.cpp that loads factored weights"] = "make runtime"
    if runtime == "onnx-gpu" and not any("unusable" not in gpu for gpu in gpus):
        missing["NVIDIA GPU"] = "install the driver; nvidia-smi must list the GPU"
    try:
        task = load_task(target.task)
        sources = (task.source, task.transfer, *task.calibration_sources)
        references = [target.model, *(source.path for source in sources)]
    except SieveError as error:
        missing[f"task {target.task}"] = str(error)
        references = [target.model]
    for reference in references:
        if reference.startswith("package:"):
            try:
                file = package_file(reference)
            except SieveError:
                missing[reference] = "make demo"
                continue
            if not file.is_file():
                missing[reference] = f"reinstall its package: {file} is not there"
    return missing


def _tables(facts: dict[str, Any]) -> list[Table]:
    machine = Table("this machine", "", title_justify="left")
    for name, value in facts["machine"].items():
        machine.add_row(name, ", ".join(value) or "none" if isinstance(value, list) else str(value))
    extras = Table("extra", "package", "version")
    for extra, packages in facts["extras"].items():
        for package, version in packages.items():
            extras.add_row(extra, package, version or "not installed")
    targets = Table("target", Column("missing", overflow="fold"), Column("how to get it", overflow="fold"))
    for name, missing in facts["targets"].items():
        if not missing:
            targets.add_row(name, "nothing", f"sieve-edge build --target {name}")
        for thing, remedy in missing.items():
            targets.add_row(name, thing, remedy)
    return [machine, extras, targets]

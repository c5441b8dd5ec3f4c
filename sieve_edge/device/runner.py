"""What a device needs to run exported folders: this package, and the few packages that its worker imports."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sieve_edge.device.llama_refusals import PATCHED
from sieve_edge.errors import EnvironmentMissing
from sieve_edge.files import digest

PYTHON = (3, 11)
"""Oldest Python that runs the worker."""

PACKAGES = ("numpy", "pydantic", "tokenizers")
RUNTIMES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "llama.cpp": ("llama-cpp-python",),
    "llama.cpp-stock": ("llama-cpp-python",),
}
"""Runtime -> packages that bring it; one of them is enough."""

_WHEEL_SYSTEMS = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_24",
    "manylinux_2_27",
    "manylinux_2_28",
    "manylinux_2_34",
)
_PIP_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_WHEEL_RUNTIMES = ("onnxruntime",)


def package_files() -> dict[str, Path]:
    """List the files of this package.

    Returns:
        Path from the folder that holds the package -> file; in order, without what a Python left behind.
    """
    package = Path(__file__).parent.parent
    files = (file for file in sorted(package.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return {str(file.relative_to(package.parent)): file for file in files}


def requirements(runtime: str, further: Sequence[str] = ()) -> tuple[Requirement, ...]:
    """List what the worker imports, with the versions that this package asks for.

    Args:
        runtime: The target's runtime.
        further: Packages that are needed besides.

    Returns:
        Requirements; of a runtime that several packages bring, the first.
    """
    wanted = {canonicalize_name(name) for name in (*PACKAGES, *further, RUNTIMES[runtime][0])}
    found: dict[str, Requirement] = {}
    for text in metadata.requires("sieve-edge") or ():
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) in wanted:
            found.setdefault(
                canonicalize_name(requirement.name), Requirement(f"{requirement.name}{requirement.specifier}")
            )
    return tuple(found[name] for name in sorted(found))


def missing(runtime: str, versions: Mapping[str, str | None], further: Sequence[str] = ()) -> list[str]:
    """Compare a device's packages with what the worker needs.

    Args:
        runtime: The target's runtime.
        versions: Package -> version on the device, None if it has none.
        further: Packages that are needed besides.

    Returns:
        What is missing or too old, in words.
    """
    problems = []
    for requirement in requirements(runtime, further):
        is_runtime = requirement.name in RUNTIMES[runtime]
        build = PATCHED if is_runtime and runtime == "llama.cpp" else ""
        names = RUNTIMES[runtime] if is_runtime else (requirement.name,)
        have = [version for version in (versions.get(name) for name in names) if version]
        # A local part, as in 0.3.36+factored, does not change which version it is.
        if not any(
            build in version and requirement.specifier.contains(version.split("+")[0], prereleases=True)
            for version in have
        ):
            problems.append(f"{requirement}{build} (has {have[0] if have else 'none'})")
    return problems


def make_site(
    runtime: str,
    machine: str,
    python: Sequence[int],
    cache: Path,
    further: Sequence[str] = (),
    accelerated: bool = False,
) -> Path:
    """Collect the worker's packages for another machine, once.

    Args:
        runtime: The target's runtime.
        machine: The device's kind of machine, e.g. ``aarch64``.
        python: Major and minor version of the device's Python.
        cache: Folder where such collections are kept.
        further: Packages that are needed besides.
        accelerated: Whether the device's own runtime computes on an accelerator; then none is collected, which would
            be found before it.

    Returns:
        Folder for the device's ``PYTHONPATH``.

    Raises:
        EnvironmentMissing: If there are no wheels of the runtime, or they cannot be fetched.
    """
    if runtime not in _WHEEL_RUNTIMES:
        raise EnvironmentMissing(
            f"the device has no usable llama-cpp-python, and there is none to send for {machine}: run make runtime in "
            "a checkout on the device, and set connection.python to its .venv/bin/python"
        )
    own = RUNTIMES[runtime] if accelerated else ()
    wanted = [str(requirement) for requirement in requirements(runtime, further) if requirement.name not in own]
    pins = _pins(wanted)
    key = digest([wanted, pins, machine, list(python)])[:16]
    place = cache / f"site-{machine}-{key}"
    if place.is_dir():
        return place
    part = cache / f".{place.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    platforms = [word for system in _WHEEL_SYSTEMS for word in ("--platform", f"{system}_{machine}")]
    version = ["--python-version", ".".join(map(str, python))]
    command = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--target", str(part), *platforms]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("".join(f"{pin}\n" for pin in pins))
        constraints.flush()
        command += [*version, "--constraint", constraints.name, *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentMissing(f"pip cannot collect {', '.join(wanted)} for {machine}: {said}")
    part.replace(place)
    return place


def site_files(site: Path) -> dict[str, Path]:
    """List a collection's files, without commands, what Pythons left behind, and what pip noted for itself.

    The notes hold hashes of the commands, whose first line names the Python that collected them: the same packages
    would give other bytes on another machine.

    Args:
        site: What ``make_site`` returned.

    Returns:
        Path in the collection -> file, in order.
    """
    files = {str(file.relative_to(site)): file for file in sorted(site.rglob("*")) if file.is_file()}
    return {name: file for name, file in files.items() if not _of_this_machine(Path(name))}


def _of_this_machine(file: Path) -> bool:
    noted = file.parent.suffix == ".dist-info" and file.name in _PIP_NOTES
    return noted or file.parts[0] == "bin" or "__pycache__" in file.parts


def _pins(wanted: Sequence[str]) -> list[str]:
    """List the versions that are installed here of packages and of what these need in turn.

    With them both sides compute alike, and the same environment collects the same; pip chooses those of what is not
    installed here.
    """
    found: dict[str, str] = {}
    ahead = list(wanted)
    while ahead:
        requirement = Requirement(ahead.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = f"{name}=={installed.version.split('+')[0]}"
        ahead += installed.requires or ()
    return [found[name] for name in sorted(found)]

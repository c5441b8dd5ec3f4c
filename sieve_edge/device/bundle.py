"""Packs a finished build into one archive that a device needs nothing else for; the same build gives the same bytes.

Packages inside have the versions of the environment that packs, down to what they need in turn: the same environment
gives the same bytes with them too.
"""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sieve_edge.artifacts import MANIFEST, read_manifest, verify
from sieve_edge.config import Target
from sieve_edge.device.check import ARTIFACT, BUNDLE, SAMPLE
from sieve_edge.device.process import runtime_fields
from sieve_edge.device.runner import PYTHON, make_site, package_files, requirements, site_files
from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.files import digest, disk_errors, file_sha256

SCRIPTS = Path(__file__).parent / "bundle_scripts"
_PAGES = ("report.md", "report.html", "result.json")
_ENGINES = ("docker", "podman", "buildah")
_PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
_IMAGES = {"onnxruntime": "onnx", "llama.cpp": "gguf", "llama.cpp-stock": "gguf-stock"}
"""Runtime -> tag of the device image that ``make image`` makes for it."""


def write_bundle(run: Path, out: Path, machine: str | None, cache: Path, card: Path | None = None) -> dict[str, Any]:
    """Write the archive of a build.

    Args:
        run: The run's folder, with a finished validation.
        out: Archive to write, ``.tar.gz``.
        machine: Kind of machine, e.g. ``aarch64``, whose packages go into the archive; None for those that
            ``install.sh`` fetches on the device.
        cache: Folder where packages for devices are kept.
        card: Model card, to lie beside the artifact.

    Returns:
        JSON-compatible: ``bundle``, ``bytes``, ``sha256`` and ``files``.

    Raises:
        ArtifactError: If the build is not finished, or its export was made again after the validation.
    """
    target = _target(run)
    exported, validated = verify(run / "export"), verify(run / "validate")
    if validated.inputs["export"] != digest(exported.outputs):
        raise ArtifactError(
            f"{run}: export was made again and not validated since; run the command that built it again, and then this"
        )
    files = _files(run, target, machine, cache)
    if card is not None:
        files[f"{ARTIFACT}/README.md"] = card
    made = _made(target, files, machine)
    name = out.name.removesuffix(".tar.gz").removesuffix(".tgz")
    part = out.with_name(out.name + ".part")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            part.open("wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for inside in sorted({*files, *made}):
                _add(archive, f"{name}/{inside}", made.get(inside) or files[inside])
        part.replace(out)
    return {
        "bundle": str(out),
        "bytes": out.stat().st_size,
        "sha256": file_sha256(out),
        "files": len(files) + len(made),
    }


def device_image(run: Path) -> str:
    """Name the device image that ``scripts/engine.sh`` makes for a build's target.

    Args:
        run: The run's folder, with a finished validation.

    Returns:
        Name and tag.

    Raises:
        EnvironmentMissing: If it makes none.
    """
    target = _target(run)
    if target.accelerated and target.format == "onnx":
        raise EnvironmentMissing(
            f"make image makes none with {target.execution_provider}, which target {target.name} asks for; name one "
            "that holds it and Python's packages numpy, pydantic and tokenizers with --base"
        )
    return f"sieve-edge-device:{_IMAGES[target.runtime]}{'-cuda' if target.accelerated else ''}"


def image_engine(base: str) -> str:
    """Choose what makes an image: the first of docker, podman and buildah that has the image to start from.

    Args:
        base: Image to start from.

    Returns:
        Name of the engine's command.

    Raises:
        EnvironmentMissing: If none is installed, or none has the image.
    """
    installed = [name for name in _ENGINES if shutil.which(name)]
    if not installed:
        raise EnvironmentMissing(f"--image needs one of {', '.join(_ENGINES)}; install one")
    said = []
    for engine in installed:
        command = [engine, "inspect", "--type", "image", base]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return engine
        said.append(f"{engine}: {_last_line(done.stderr)}")
    raise EnvironmentMissing(
        f"no engine has the image {base} ({'; '.join(said)}); 'make image' makes those of shipped runtimes, others "
        "have to be pulled first"
    )


def make_image(bundle: Path, tag: str, base: str, machine: str | None, engine: str) -> dict[str, str]:
    """Make a device image around a bundle.

    Args:
        bundle: The archive.
        tag: Name of the image.
        base: Device image to start from, see ``docker/device.Dockerfile``.
        machine: Kind of machine whose packages are in the bundle; None for that of the engine.
        engine: What ``image_engine`` chose.

    Returns:
        JSON-compatible: ``image`` and ``engine``.

    Raises:
        EnvironmentMissing: If the engine fails.
    """
    folder = bundle.name.removesuffix(".tar.gz").removesuffix(".tgz")
    # ADD unpacks archives.
    text = f'FROM {base}\nADD {bundle.name} /opt/\nWORKDIR /opt/{folder}\nENTRYPOINT ["/bin/sh", "check.sh"]\n'
    file = bundle.with_name(f".{bundle.name}.Dockerfile")
    file.write_text(text, encoding="utf-8")
    # HEALTHCHECK, which the base has, is no part of the other engines' own format.
    options = [] if engine == "docker" else ["--format", "docker"]
    if machine in _PLATFORMS:
        options += ["--platform", _PLATFORMS[machine]]
    try:
        command = [engine, "build", *options, "-f", str(file), "-t", tag, str(bundle.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        file.unlink()
    if done.returncode:
        raise EnvironmentMissing(f"{engine} cannot build {tag} from {base}: {_last_line(done.stderr)}")
    return {"image": tag, "engine": engine}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _target(run: Path) -> Target:
    """Read the target that a build was validated for."""
    if not (run / "validate" / MANIFEST).is_file():
        raise ArtifactError(f"{run}: not a finished build, it has no validate/{MANIFEST}; run sieve-edge build")
    return Target.model_validate(read_manifest(run / "validate").settings["target"])


def _files(run: Path, target: Target, machine: str | None, cache: Path) -> dict[str, Path]:
    """List what is packed as it is: path in the bundle -> file."""
    pruned = run / "export" / "pruned"
    files = {f"{ARTIFACT}/{file.name}": file for file in pruned.iterdir() if file.is_file()}
    files |= {f"runner/{name}": file for name, file in package_files().items()}
    files |= {name: run / name for name in _PAGES if (run / name).is_file()}
    files |= {file.name: file for file in SCRIPTS.glob("*.sh")}
    files[SAMPLE] = run / "validate" / SAMPLE
    if machine is not None:
        site = make_site(target.runtime, machine, PYTHON, cache, accelerated=target.accelerated)
        files |= {f"site/{name}": file for name, file in site_files(site).items()}
    return files


def _made(target: Target, files: Mapping[str, Path], machine: str | None) -> dict[str, bytes]:
    """Make what describes the bundle."""
    hashes = {name: file_sha256(file) for name, file in sorted(files.items())}
    # What the packages inside are for, which install.sh compares with the device.
    site = None if machine is None else {"machine": machine, "python": ".".join(map(str, PYTHON))}
    facts = {"target": target.name, "runtime": runtime_fields(target, True), "site": site, "sha256": hashes}
    needed = "".join(f"{requirement}\n" for requirement in requirements(target.runtime))
    return {BUNDLE: (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode(), "requirements.txt": needed.encode()}


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    """Add a file without what differs between machines: owner, time, and permissions but for scripts."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if name.endswith(".sh") else 0o644
    if isinstance(content, bytes):
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    entry.size = content.stat().st_size
    with content.open("rb") as opened:
        archive.addfile(entry, opened)

"""What stages leave for each other on disk: manifests, atomic writes, verified reads, and the types.

A stage writes into a ``work`` folder beside its place, finishes with its manifest, and is then
renamed into place; so a folder that has a manifest is complete. Everything here runs without torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sieve_edge.errors import ArtifactError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a stage read, how it was set, what came out and how long it took; written last."""

    stage: str
    key: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    seconds: float
    outputs: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatrixSpec:
    """One of the four multiplications of a layer; its parts are stacked along the outputs.

    Attributes:
        name: Layer and kind, for example ``"7.gate_up"``.
        paths: Module paths of the parts, in the order the layer calls them.
        part_features: Output features of each part; they sum to ``out_features``.
        out_features: O of the stack.
        in_features: I.
        side: ``"pre"`` (before a non-linearity, reads the residual stream) or ``"post"`` (writes to it).
    """

    name: str
    paths: tuple[str, ...]
    part_features: tuple[int, ...]
    out_features: int
    in_features: int
    side: str

    @property
    def kind(self) -> str:
        """Kind of the matrix: ``qkv``, ``o``, ``gate_up`` or ``down``."""
        return self.name.split(".", 1)[1]

    @property
    def params(self) -> int:
        """Parameters of the dense matrix, biases left out."""
        return self.out_features * self.in_features


@dataclass(frozen=True)
class PruningPlan:
    """What the search decided: a rank for every matrix, ``None`` where it stays dense.

    ``kept_linears`` is the fraction of the four matrices' parameters that are kept (rho);
    ``kept_model`` the fraction of all parameters. ``accuracy`` and ``dense_accuracy`` are of the
    selection split, after prior correction.
    """

    factors: Mapping[str, float]
    ranks: Mapping[str, int | None]
    storage: str
    kept_linears: float
    kept_model: float
    accuracy: float
    dense_accuracy: float
    strategy: str
    seed: int
    evaluations: int


def digest(value: Any) -> str:
    """Hash JSON-compatible data.

    Args:
        value: Anything ``json.dumps`` takes.

    Returns:
        SHA-256, hexadecimal.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: File to read.

    Returns:
        SHA-256, hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(root: Path) -> list[Path]:
    """List the files of an artifact.

    Args:
        root: Artifact folder.

    Returns:
        Files below ``root`` in a fixed order, the manifest left out.
    """
    return sorted(path for path in root.rglob("*") if path.is_file() and path != root / MANIFEST)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never a part.

    Args:
        path: File to write; its folder exists.
        value: JSON-compatible data.
    """
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote.

    Args:
        path: File to read.

    Returns:
        The parsed value.

    Raises:
        ArtifactError: If the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; delete its folder and run the build again") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); delete its folder and run the build again") from error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only file system into an error with one clear line.

    Args:
        path: What is being written; named in the message.

    Yields:
        Nothing.

    Raises:
        ArtifactError: If the disk refuses.
        OSError: Any other error, unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        folder = next(parent for parent in (path, *path.parents) if parent.exists())
        free_mib = shutil.disk_usage(folder).free / 2**20
        raise ArtifactError(
            f"{path}: cannot write ({error.strerror}, {free_mib:.0f} MiB free); free space there or choose another "
            "--run-dir; finished stages are kept"
        ) from error


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Finish an artifact folder.

    Args:
        root: Folder whose files are complete.
        manifest: Its manifest; ``outputs`` as from ``describe_outputs``.
    """
    write_json(root / MANIFEST, asdict(manifest))


def describe_outputs(root: Path) -> dict[str, dict[str, Any]]:
    """Hash and measure every file of an artifact folder.

    Args:
        root: Folder to describe.

    Returns:
        Relative path -> ``{"sha256": ..., "bytes": ...}``.
    """
    return {
        path.relative_to(root).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in list_files(root)
    }


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a finished artifact.

    Args:
        root: Artifact folder.

    Returns:
        The manifest.

    Raises:
        ArtifactError: If the manifest is missing or has other fields than this version writes.
    """
    tree = read_json(root / MANIFEST)
    try:
        return Manifest(**{**tree, "fallbacks": tuple(tree["fallbacks"])})
    except (TypeError, KeyError) as error:
        raise ArtifactError(
            f"{root / MANIFEST}: not a manifest of this version ({error}); delete its folder"
        ) from error


def is_current(root: Path, key: str) -> bool:
    """Say whether a finished artifact has this key and all its files at their sizes.

    Args:
        root: Artifact folder.
        key: Key that the stage would be run with.

    Returns:
        True if the stage need not run.
    """
    if not (root / MANIFEST).is_file():
        return False
    manifest = read_manifest(root)
    if manifest.key != key:
        return False
    return all(
        (root / name).is_file() and (root / name).stat().st_size == facts["bytes"]
        for name, facts in manifest.outputs.items()
    )


def verify(root: Path) -> Manifest:
    """Check every file of an artifact against its manifest before it is used.

    Args:
        root: Artifact folder.

    Returns:
        The manifest.

    Raises:
        ArtifactError: If a file is missing, truncated or changed.
    """
    manifest = read_manifest(root)
    for name, facts in manifest.outputs.items():
        path = root / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; delete {root} and run the build again")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise ArtifactError(
                f"{path}: truncated, {size} bytes instead of {facts['bytes']}; delete {root} and run the build again"
            )
        if file_sha256(path) != facts["sha256"]:
            raise ArtifactError(f"{path}: content differs from its manifest; delete {root} and run the build again")
    return manifest


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record durably, so that a killed run keeps it.

    Args:
        path: JSON-lines file.
        record: JSON-compatible data.
    """
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Read records that were appended, dropping a torn last line from the file.

    Args:
        path: JSON-lines file, which may be missing.

    Returns:
        ``(records, torn)``; ``torn`` says that an incomplete last line was dropped.

    Raises:
        ArtifactError: If another line than the last is broken.
    """
    if not path.is_file():
        return [], False
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    good_bytes = 0
    for number, line in enumerate(lines, 1):
        try:
            records.append(_parse_line(line))
        except ValueError as error:
            if number < len(lines):
                raise ArtifactError(f"{path}: line {number} is not JSON ({error}); delete the file") from error
            os.truncate(path, good_bytes)
            return records, True
        good_bytes += len(line)
    return records, False


def _parse_line(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("no newline")
    record: dict[str, Any] = json.loads(line)
    return record

"""What stages leave for each other on disk: the types, manifests, and reads that are verified.

A stage writes into a ``work`` folder beside its place, finishes with its manifest, and is then
renamed into place; so a folder that has a manifest is complete. Everything here runs without torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sieve_edge.errors import ArtifactError
from sieve_edge.files import file_sha256, read_json, write_json

MANIFEST = "manifest.json"
FRONT = "front.json"
SCORED = "scored.json"


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
        source: The matrix that makes its inputs, where both are pruned in width together and count as one.
        unit: Neighbouring inputs that only go together when it is pruned in width.
    """

    name: str
    paths: tuple[str, ...]
    part_features: tuple[int, ...]
    out_features: int
    in_features: int
    side: str
    source: "MatrixSpec | None" = None
    unit: int = 1

    @property
    def kind(self) -> str:
        """Kind of the matrix: ``qkv``, ``o``, ``gate_up`` or ``down``."""
        return self.name.split(".", 1)[1]

    @property
    def layer(self) -> int:
        """Index of the matrix's layer."""
        return int(self.name.split(".", 1)[0])

    @property
    def params(self) -> int:
        """Parameters of the dense matrix and of its source, biases left out."""
        return self.out_features * self.in_features + (self.source.params if self.source else 0)


@dataclass(frozen=True)
class PruningPlan:
    """What the search decided: a rank for every matrix, ``None`` where it stays dense, 0 where its block is left out.

    With storage ``"width"`` a rank is the number of inputs that a matrix keeps, and its source makes only those.

    ``kept_linears`` is the fraction of the four matrices' parameters that are kept (rho); ``kept_model`` the fraction
    of all parameters. Accuracies and the loss are of the selection split, after prior correction, and after refit
    where ``refit`` says so; ``accept`` says by what the plan was accepted, ``loss_bound`` is the upper end of the
    paired interval of its loss.
    """

    id: str
    ranks: Mapping[str, int | None]
    storage: str
    kept_linears: float
    kept_model: float
    accuracy: float
    dense_accuracy: float
    loss: float
    loss_bound: float
    accept: str
    refit: bool
    strategy: str
    seed: int
    evaluations: int
    tokens_scored: int


def read_plan(root: Path, number: int | None = None) -> PruningPlan:
    """Read what a search decided.

    Args:
        root: Artifact of search.
        number: Plan on the front, from 1, in place of the one that was chosen.

    Returns:
        The plan.

    Raises:
        ArtifactError: If there is no front, or no such plan on it.
    """
    plan = PruningPlan(**read_json(root / "plan.json"))
    if number is None:
        return plan
    if not (root / FRONT).is_file():
        raise ArtifactError(f"plan {number}: the search kept no front; build with --set search.front=true")
    plans = read_json(root / FRONT)
    if not 1 <= number <= len(plans):
        raise ArtifactError(f"plan {number}: the front has the plans 1 to {len(plans)}; see {root / FRONT}")
    names = {item.name for item in fields(PruningPlan)}
    return replace(plan, **{name: value for name, value in plans[number - 1].items() if name in names})


def list_files(root: Path) -> list[Path]:
    """List the files of an artifact.

    Args:
        root: Artifact folder.

    Returns:
        Files below ``root`` in a fixed order, the manifest left out.
    """
    return sorted(path for path in root.rglob("*") if path.is_file() and path != root / MANIFEST)


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

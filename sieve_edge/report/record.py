"""What the artifacts of a finished build hold for its report, which computes nothing anew and imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sieve_edge import STAGES
from sieve_edge.artifacts import MANIFEST, SCORED, Manifest, PruningPlan, read_manifest, read_plan
from sieve_edge.errors import ArtifactError
from sieve_edge.files import digest, read_json, read_jsonl

RESULT = "result.json"


@dataclass(frozen=True)
class RunRecord:
    """A finished build, as its artifacts tell it.

    What builds of an earlier version did not record is None, and the report says so.

    Attributes:
        root: The run's folder.
        result: What the build ended with.
        manifests: Stage -> manifest.
    """

    root: Path
    result: Mapping[str, Any]
    manifests: Mapping[str, Manifest]

    @classmethod
    def read(cls, root: Path) -> "RunRecord":
        """Read a build.

        Args:
            root: The run's folder.

        Returns:
            The record.

        Raises:
            ArtifactError: If the build is not finished, or a stage was run again without those after it.
        """
        if not (root / RESULT).is_file():
            raise ArtifactError(f"{root}: not a finished build, it has no {RESULT}; run sieve-edge build")
        result: dict[str, Any] = read_json(root / RESULT)
        manifests = {}
        for stage in STAGES:
            if not (root / stage.verb / MANIFEST).is_file():
                raise ArtifactError(f"{root}: {stage.verb}/{MANIFEST} is missing; run: {result['command']}")
            manifests[stage.verb] = read_manifest(root / stage.verb)
        measured = manifests["validate"]
        for verb, sha256 in measured.inputs.items():
            if verb in manifests and digest(manifests[verb].outputs) != sha256:
                raise ArtifactError(f"{root}: {verb} was run again and not validated since; run: {result['command']}")
        report: dict[str, Any] = read_json(root / "validate" / "report.json")
        if report["timing"] != result["timing"] or report["accuracy"] != result["accuracy"]:
            raise ArtifactError(f"{root / RESULT}: older than validate's figures; run: {result['command']}")
        return cls(root, result, manifests)

    @cached_property
    def plan(self) -> PruningPlan:
        """The plan that was fused."""
        return read_plan(self.root / "search", self.manifests["fuse"].settings.get("plan"))

    @property
    def target(self) -> Mapping[str, Any]:
        """Settings of the target."""
        target: Mapping[str, Any] = self.manifests["validate"].settings["target"]
        return target

    @property
    def tolerance(self) -> float:
        """Allowed relative loss."""
        return float(self.manifests["validate"].settings["tolerance"])

    @property
    def search_tolerance(self) -> float:
        """Relative loss that a plan was allowed, before tuning."""
        return float(self.manifests["search"].settings["tolerance"])

    @cached_property
    def bottlenecks(self) -> Mapping[str, Any]:
        """Which matrices good plans leave alone."""
        found: Mapping[str, Any] = read_json(self.root / "search" / "bottlenecks.json")
        return found

    @cached_property
    def scored(self) -> list[dict[str, Any]] | None:
        """Plans that were scored on the selection split, in order."""
        found: list[dict[str, Any]] | None = self._optional("search", SCORED)
        return found

    @cached_property
    def divergences(self) -> list[dict[str, Any]]:
        """Plans that were scored by KL divergence on few prompts, in order; the dense model is left out."""
        records, _ = read_jsonl(self.root / "search" / "history.jsonl")
        return [item for item in records if item["rung"] == "divergence" and item["kept_linears"] < 1.0]

    @cached_property
    def differences(self) -> dict[str, Any] | None:
        """Test examples that the two models answer differently."""
        found: dict[str, Any] | None = self._optional("validate", "differences.json")
        return found

    @cached_property
    def samples(self) -> Mapping[str, Mapping[str, Any]]:
        """Every time that was measured, of both models."""
        found: Mapping[str, Mapping[str, Any]] = read_json(self.root / "validate" / "timing.json")["result"]
        return found

    @cached_property
    def sidecars(self) -> dict[str, Mapping[str, Any]]:
        """Stage -> ``sieve_edge.json``, of the stages that left a checkpoint."""
        files = {verb: self.root / verb / "sieve_edge.json" for verb in ("fuse", "tune", "vocabulary")}
        return {verb: read_json(file) for verb, file in files.items() if file.is_file()}

    def _optional(self, verb: str, name: str) -> Any:
        """Read a file that builds of an earlier version did not write."""
        return read_json(self.root / verb / name) if name in self.manifests[verb].outputs else None

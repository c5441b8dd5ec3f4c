"""What exactly was run: hashes, versions, seeds, settings."""

import json
from typing import Any

from sieve_edge.report.record import RunRecord
from sieve_edge.report.tables import Table

OFF = {"tune": ("method", "none"), "vocabulary": ("keep", "all")}
"""Stage -> the metric and its value that say that it was off."""


def provenance(record: RunRecord) -> Table:
    """List what went into a build and what came out.

    Args:
        record: The build.

    Returns:
        One row for each hash or seed.
    """
    calibrated, exported = record.manifests["calibrate"], record.manifests["export"]
    source = record.result.get("source") or {}
    rows = [
        ("model", source.get("reference") or "not recorded", calibrated.inputs["model"]),
        ("splits of the task", record.result["task"], calibrated.inputs["splits"]),
        ("plan", f"{record.plan.strategy}, seed {record.plan.seed}", record.plan.id),
    ]
    for name, facts in exported.outputs.items():
        if name.startswith("pruned/"):
            rows.append((f"export/{name}", f"{facts['bytes']:,} bytes", str(facts["sha256"])))
    return Table(("what", "which", "hash"), rows)


def versions(record: RunRecord) -> Table:
    """List the packages that were used; where stages ran with different ones, all of them.

    Args:
        record: The build.

    Returns:
        One row for each package.
    """
    found: dict[str, set[str]] = {}
    for manifest in record.manifests.values():
        for package, version in manifest.versions.items():
            found.setdefault(package, set()).add(version)
    rows = [(package, ", ".join(sorted(of))) for package, of in sorted(found.items())]
    return Table(("package", "version"), rows)


def stage_keys(record: RunRecord) -> Table:
    """List the stages with what identifies their artifacts.

    Args:
        record: The build.

    Returns:
        One row for each stage.
    """
    rows = [
        (verb, manifest.key[:16], str(manifest.seed), f"{manifest.seconds:.1f}", str(len(manifest.fallbacks)))
        for verb, manifest in record.manifests.items()
    ]
    return Table(("stage", "key", "seed", "seconds", "fallbacks"), rows)


def settings(record: RunRecord) -> dict[str, str]:
    """Write the settings that each stage's result depends on.

    Args:
        record: The build.

    Returns:
        Stage -> JSON.
    """
    return {verb: json.dumps(manifest.settings, indent=1) for verb, manifest in record.manifests.items()}


def flat_settings(record: RunRecord) -> dict[tuple[str, str], str]:
    """Write every setting on its own.

    Args:
        record: The build.

    Returns:
        ``(path inside the settings, stage)`` -> its value.
    """
    found: dict[tuple[str, str], str] = {}
    for verb, manifest in record.manifests.items():
        flat: dict[str, str] = {"seed": str(manifest.seed)}
        _flatten("", manifest.settings, flat)
        found |= {(path, verb): value for path, value in flat.items()}
    return found


def _flatten(prefix: str, value: Any, found: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _flatten(f"{prefix}.{name}" if prefix else str(name), inner, found)
    else:
        found[prefix] = value if isinstance(value, str) else json.dumps(value)

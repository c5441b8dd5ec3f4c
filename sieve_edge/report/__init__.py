"""What a person reads about a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sieve_edge.artifacts import Manifest
from sieve_edge.files import read_json, write_json
from sieve_edge.report.markdown import write_report
from sieve_edge.report.tuned import loss_against

VOCABULARY = ("tokens", "changed", "scores", "lost")
"""What a result tells of a smaller vocabulary."""


def finish(root: Path, manifests: Mapping[str, Manifest], command: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what a build ends with: the result and the pages, in the run's folder.

    Args:
        root: The run's folder.
        manifests: Stage -> manifest, all stages.
        command: Command that reproduces the run.
        source: What the model is that was pruned, and its licence; see ``ModelSource.facts``.

    Returns:
        The result, JSON-compatible.
    """
    from sieve_edge.report.page import PAGE, run_page, write_page
    from sieve_edge.report.record import RESULT, RunRecord

    result: dict[str, Any] = read_json(root / "validate" / "report.json")
    result["seconds"] = {verb: manifest.seconds for verb, manifest in manifests.items()}
    result["build_peak_memory_mib"] = max(
        manifest.metrics["process_peak_memory_mib"] for manifest in manifests.values()
    )
    result["fallbacks"] = [fallback for manifest in manifests.values() for fallback in manifest.fallbacks]
    judged = {verb: manifest.metrics["judge"] for verb, manifest in manifests.items() if "judge" in manifest.metrics}
    if judged:
        result["judge"] = judged
    tuned = manifests["tune"].metrics
    if tuned["method"] != "none":
        told = ("method", "loss", "kept", "scores", "transfer_lost", "transfer_holds", "dtype")
        result["tune"] = {name: tuned[name] for name in told if name in tuned}
        result["tune"]["loss_against"] = loss_against(result["tune"])
    trimmed = manifests["vocabulary"].metrics
    if trimmed["keep"] != "all":
        result["vocabulary"] = {name: value for name, value in trimmed.items() if name in VOCABULARY}
    result["artifact"] = str(root / "export" / "pruned")
    result["command"] = command
    result["source"] = {**source, "sha256": manifests["calibrate"].inputs["model"]}
    result["report"] = str(write_report(result, root))
    page = root / PAGE
    result["page"] = str(page)
    write_json(root / RESULT, result)
    write_page(run_page(RunRecord.read(root)), page)
    return result

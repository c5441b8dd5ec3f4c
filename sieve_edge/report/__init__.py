"""What a person reads about a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sieve_edge.artifacts import Manifest
from sieve_edge.files import read_json, write_json
from sieve_edge.report.markdown import write_report
from sieve_edge.task.evaluate import relative_loss


def finish(root: Path, manifests: Mapping[str, Manifest], command: str) -> dict[str, Any]:
    """Put together what a build ends with: the result and the page, in the run's folder.

    Args:
        root: The run's folder.
        manifests: Stage -> manifest, all stages.
        command: Command that reproduces the run.

    Returns:
        The result, JSON-compatible.
    """
    result: dict[str, Any] = read_json(root / "validate" / "report.json")
    result["seconds"] = {verb: manifest.seconds for verb, manifest in manifests.items()}
    result["build_peak_memory_mib"] = max(
        manifest.metrics["process_peak_memory_mib"] for manifest in manifests.values()
    )
    result["fallbacks"] = [fallback for manifest in manifests.values() for fallback in manifest.fallbacks]
    tuned = manifests["tune"].metrics
    if tuned["method"] != "none":
        result["tune"] = {
            name: tuned[name] for name in ("method", "loss", "kept", "scores", "transfer_lost", "transfer_holds")
        }
        scores = tuned["scores"]
        if "dense_tuned" in scores:
            # Both in PyTorch, before the vocabulary and the weights' types change.
            result["loss"]["against_dense_tuned"] = {
                split: relative_loss(scores[tuned["kept"]][split], scores["dense_tuned"][split])
                for split in ("test", "transfer")
            }
    result["artifact"] = str(root / "export" / "pruned")
    result["command"] = command
    result["report"] = str(write_report(result, root))
    write_json(root / "result.json", result)
    return result

"""Compares what was measured with what the target and the task ask for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sieve_edge.config import Target
from sieve_edge.device.reference import DRIFT
from sieve_edge.files import read_json

MAX_LOGIT_DIFFERENCE = 5e-3
"""Largest absolute difference from the reference logits, float32."""

KL_FACTOR, KL_MARGIN = 2.0, 0.01
"""How far a quantized artifact may drift on the device from what it computed where it was exported: the divergence from
PyTorch there, times and plus this; nats. It says nothing of how good the quantization is: the task's loss does."""

FASTER = "faster"
"""The check that the pruned model answers in less time than the dense one, which no target can leave out."""

_NOT_FASTER = "not faster than dense"
_UNITS = {"ms": "ms", "mib": "MiB"}


def make_checks(result: Mapping[str, Any], target: Target, tolerance: float) -> list[dict[str, Any]]:
    """Compare what was measured with what was asked.

    Args:
        result: Figures of ``validate``.
        target: Device and limits.
        tolerance: Allowed relative loss on the test split.

    Returns:
        One ``{name, measured, limit, unit, passed}`` for each check; a limit that the target leaves out has none.
        ``passed`` is None for what only the device can tell, and it was not there.
    """
    pruned, dense = result["timing"]["pruned"], result["timing"]["dense"]
    measured = {
        **pruned,
        "peak_memory_mib": result["peak_memory_mib"]["pruned"],
        "file_size_mib": result["size_mib"]["pruned"],
    }
    checks = [
        _check("loss_test", result["loss"]["test"], tolerance, "fraction"),
        _drift_check(result),
        _check(FASTER, pruned["time_per_answer_ms"], dense["time_per_answer_ms"], "ms"),
    ]
    checks[-1]["passed"] = pruned["time_per_answer_ms"] < dense["time_per_answer_ms"]
    for name, limit in target.limits.model_dump(exclude_none=True).items():
        checks.append(_check(name, measured[name], limit, _UNITS[name.rsplit("_", 1)[1]]))
    if result["validated_on"] == "host":
        for check in checks:
            check["passed"] = None if check["unit"] == "ms" or check["name"] == "peak_memory_mib" else check["passed"]
    return checks


def told(checks: Sequence[Mapping[str, Any]], passed: bool | None) -> str:
    """List checks of one outcome in words.

    Args:
        checks: What ``make_checks`` returned.
        passed: Their outcome.

    Returns:
        Name, measured value and limit of each; empty if there is none.
    """
    return ", ".join(_told(item) for item in checks if item["passed"] is passed)


def check_name(check: Mapping[str, Any]) -> str:
    """Name a check for people, in the words that they search for where it failed.

    Args:
        check: One of those that ``make_checks`` returned.

    Returns:
        Its name.
    """
    return _NOT_FASTER if check["name"] == FASTER and check["passed"] is False else str(check["name"])


def kl_limit(artifact: Path, target: Target) -> float | None:
    """Say how far from PyTorch a quantized artifact may be on the device: as far as at export, and a margin.

    It catches a device that computes otherwise than the export did, and nothing that was lost before.

    Args:
        artifact: Exported folder.
        target: Its target.

    Returns:
        Nats; None for float32, whose logits are compared instead.
    """
    if target.quantization == "F32":
        return None
    return KL_FACTOR * float(read_json(artifact / DRIFT)["kl"]) + KL_MARGIN


def _told(check: Mapping[str, Any]) -> str:
    measured, limit = f"{check['measured']:.4g}", f"{check['limit']:.4g} {check['unit']}"
    if check["passed"] is not False:
        return f"{check['name']} {measured} against {limit}"
    if check["name"] == FASTER:
        # Equal is not faster.
        return f"{check_name(check)}: time_per_answer_ms {measured} >= {limit}"
    return f"{check['name']} {measured} > {limit}"


def _drift_check(result: Mapping[str, Any]) -> dict[str, Any]:
    drift = result["drift"]
    if drift["kl_limit"] is None:
        return _check("max_logit_difference", result["max_logit_difference"], MAX_LOGIT_DIFFERENCE, "logits")
    return _check("kl_from_pytorch", drift["kl"], drift["kl_limit"], "nats")


def _check(name: str, measured: float, limit: float, unit: str) -> dict[str, Any]:
    return {"name": name, "measured": measured, "limit": limit, "unit": unit, "passed": measured <= limit}

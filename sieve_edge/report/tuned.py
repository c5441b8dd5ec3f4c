"""What a report says of tuning, where it was on."""

from collections.abc import Mapping
from typing import Any

from sieve_edge.report.tables import SPLITS, Result, Table


def scores(tune: Mapping[str, Any]) -> tuple[str, Table]:
    """Say what tuning did.

    Args:
        tune: Part ``tune`` of a result.

    Returns:
        ``(sentences, scores of each model)``.
    """
    rows = [
        (name.replace("_", " "), *(f"{of[split]:.3f}" for split in ("selection", *SPLITS)))
        for name, of in tune["scores"].items()
    ]
    told = f"{tune['method']}, loss {tune['loss']}; the {tune['kept']} factors were exported. "
    told += "Scores by the task's metric, of labels corrected, in PyTorch."
    return told, Table(("model", "selection", *SPLITS), rows)


def against_dense(result: Result) -> str:
    """Say how the model compares with the dense one that was tuned in the same way.

    Args:
        result: Result of a build.

    Returns:
        One sentence, or an empty text.
    """
    against = result["loss"].get("against_dense_tuned")
    if against is None:
        return ""
    return (
        f"Loss against the dense model tuned on the answers in the same way: test {against['test']:.2%}, "
        f"transfer {against['transfer']:.2%}."
    )


def warning(tune: Mapping[str, Any]) -> str:
    """Warn of tuning that does not hold on the transfer set.

    Args:
        tune: Part ``tune`` of a result.

    Returns:
        One sentence, or an empty text.
    """
    if tune["transfer_holds"]:
        return ""
    return f"Tuning loses {tune['transfer_lost']:.2%} on the transfer set, more than the tolerance."

"""What a report says of tuning, where it was on."""

from collections.abc import Mapping
from typing import Any

from sieve_edge.report.tables import SPLITS, Table
from sieve_edge.task.evaluate import relative_loss

_ALIKE = {"lora": "dense + same LoRA", "full_factors": "dense, trained alike"}


def scores(tune: Mapping[str, Any]) -> tuple[str, Table]:
    """Say what tuning did.

    Args:
        tune: Part ``tune`` of a result.

    Returns:
        ``(sentences, scores of each model, and its losses against both dense models)``.
    """
    known, names = tune["scores"], _names(tune)
    references = [name for name in ("dense", "dense_tuned") if name in known]
    rows = []
    for model, title in names.items():
        figures = [f"{known[model][split]:.3f}" for split in ("selection", *SPLITS)]
        lost = ["-" if model == of else _told(_losses(known, model, of)) for of in references]
        rows.append((title, *figures, *lost))
    arithmetic = f", in {tune['dtype']}" if "dtype" in tune else ""
    told = f"{tune['method']}, loss {tune['loss']}{arithmetic}; the {tune['kept']} factors were exported. "
    told += "Scores by the task's metric, of labels corrected, in PyTorch: before the vocabulary and the weights' "
    told += "types change, so the losses of the exported file are others."
    head = ("model", "selection", *SPLITS, *(f"loss against {names[of]}" for of in references))
    return told, Table(head, rows)


def loss_against(tune: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Compare the factors that were kept with the dense model, and with the one that was tuned in the same way.

    Both are taken in PyTorch, so that one can be held against the other.

    Args:
        tune: Part ``tune`` of a result.

    Returns:
        ``dense`` and ``dense_tuned`` -> split -> relative loss; what was not scored is left out.
    """
    known = tune["scores"]
    return {of: _losses(known, tune["kept"], of) for of in ("dense", "dense_tuned") if of in known}


def against_dense(tune: Mapping[str, Any]) -> str:
    """Say how the model compares with the dense one, and with the one that was tuned in the same way.

    Args:
        tune: Part ``tune`` of a result.

    Returns:
        One sentence, or an empty text.
    """
    losses, names = loss_against(tune), _names(tune)
    if not losses:
        return ""
    told = "; ".join(f"against {names[of]} {_told(lost)}" for of, lost in losses.items())
    alike = " The dense model was tuned on the answers." if "dense_tuned" in losses else ""
    return f"Loss of the exported factors in PyTorch: {told}.{alike}"


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


def _names(tune: Mapping[str, Any]) -> dict[str, str]:
    """Name the models that were scored, the dense ones first."""
    names = {"dense": "dense", "dense_tuned": _ALIKE[tune["method"]], "untuned": "pruned", "tuned": "pruned, tuned"}
    return {name: title for name, title in names.items() if name in tune["scores"]}


def _losses(known: Mapping[str, Mapping[str, float]], model: str, of: str) -> dict[str, float]:
    return {split: relative_loss(known[model][split], known[of][split]) for split in SPLITS}


def _told(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{split} {lost:.2%}" for split, lost in losses.items())

"""What each stage did to accuracy, parameters and bytes, as far as the manifests know it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sieve_edge.report.record import RunRecord
from sieve_edge.report.tables import SPLITS, Table

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Step:
    """One stage's part.

    Attributes:
        stage: The stage; ``dense`` for where the build starts.
        did: What it did, in words.
        accuracy: Score on the selection split afterwards, in PyTorch; None where nothing was scored.
        kept_model: Fraction of the model's parameters afterwards; None where that does not change.
        mib: Size of the weights that it wrote.
    """

    stage: str
    did: str
    accuracy: float | None = None
    kept_model: float | None = None
    mib: float | None = None


def steps(record: RunRecord) -> list[Step]:
    """List what the stages did, those that were off left out.

    Args:
        record: The build.

    Returns:
        Steps in order.
    """
    return [
        _dense(record),
        _search(record),
        _fuse(record),
        *_tune(record),
        *_vocabulary(record),
        *_quantize(record),
        *_device(record),
    ]


def steps_table(done: list[Step]) -> Table:
    """Write the steps as a table.

    Args:
        done: Steps.

    Returns:
        One row for each.
    """
    rows = [
        (
            step.stage,
            step.did,
            "-" if step.accuracy is None else f"{step.accuracy:.3f}",
            "-" if step.kept_model is None else f"{step.kept_model:.1%}",
            "-" if step.mib is None else f"{step.mib:.1f}",
        )
        for step in done
    ]
    return Table(("stage", "what it did", "accuracy, selection", "parameters", "weights, MiB"), rows)


def _dense(record: RunRecord) -> Step:
    scored = record.manifests["calibrate"].metrics["dense_selection"]
    return Step(
        "dense", "the model as it came, exported for the target", scored["corrected"], 1.0, _exported(record, "dense")
    )


def _search(record: RunRecord) -> Step:
    plan, found = record.plan, record.manifests["search"].metrics
    refitted = ", after refit" if plan.refit else ""
    did = (
        f"{plan.strategy}: scored {found['evaluations']} plans on the selection split; this one loses {plan.loss:.2%} "
        f"there{refitted} (upper end {plan.loss_bound:.2%})"
    )
    return Step("search", did, plan.accuracy, plan.kept_model)


def _fuse(record: RunRecord) -> Step:
    fused = record.manifests["fuse"].metrics
    did = f"put the factors in: {fused['params']:,} parameters, float32"
    return Step("fuse", did, fused["selection"]["corrected"], fused["kept_fraction"]["model"], _written(record, "fuse"))


def _tune(record: RunRecord) -> list[Step]:
    tuned = record.manifests["tune"].metrics
    if tuned["method"] == "none":
        return []
    score = tuned["scores"][tuned["kept"]]["selection"]
    return [
        Step("tune", f"{tuned['method']}; the {tuned['kept']} factors were kept", score, None, _written(record, "tune"))
    ]


def _vocabulary(record: RunRecord) -> list[Step]:
    trimmed = record.manifests["vocabulary"].metrics
    if trimmed["keep"] == "all":
        return []
    facts = record.sidecars["vocabulary"]
    did = f"kept {trimmed['tokens']['after']:,} of {trimmed['tokens']['before']:,} tokens; {_recoded(trimmed)}"
    kept = facts["kept_fraction"]["model"]
    return [Step("vocabulary", did, facts["selection"]["pruned"], kept, _written(record, "vocabulary"))]


def _recoded(trimmed: Mapping[str, Any]) -> str:
    """Say how often texts that the tokens were not chosen by are split otherwise, and what that costs."""
    told = []
    for split in SPLITS:
        changed = trimmed["changed"][split]
        often = f"{changed['texts']:.1%} of the {split} texts are split otherwise, {changed['tokens']:+.2%} tokens"
        # Builds of an earlier version did not score both.
        if "scores" in trimmed:
            whole, now = (trimmed["scores"][name][split] for name in ("whole", "trimmed"))
            often += f", accuracy {now:.3f} in place of {whole:.3f}"
        told.append(often)
    return "; ".join(told)


def _quantize(record: RunRecord) -> list[Step]:
    quantized = record.manifests["quantize"].metrics
    errors = quantized.get("mean_error_by_method", {}).get("pruned")
    if errors is None:
        return []
    told = ", ".join(f"{error:.1e} by {method}" for method, error in errors.items())
    # Builds of an earlier version did not count them.
    counts = quantized.get("weights", {}).get("pruned", {})
    taken = ", ".join(f"{count} weights by {method}" for method, count in counts.items())
    rounded = f"rounded {taken}; " if taken else ""
    did = f"{quantized['quantization']}: {rounded}relative squared error of a weight's outputs {told}"
    return [Step("quantize", did)]


def _device(record: RunRecord) -> list[Step]:
    accuracy, target = record.result["accuracy"]["pruned"], record.target
    told = f"{target['format']}, {target['quantization']}; {record.result['drift']['kl']:.1e} nats from PyTorch"
    found = ", ".join(f"{split} {accuracy[split]['corrected']:.3f}" for split in SPLITS)
    scored = f"in {target['runtime']}: {found}"
    return [Step("export", told, mib=_exported(record, "pruned")), Step("validate", scored)]


def _exported(record: RunRecord, model: str) -> float:
    size: float = record.result["size_mib"][model]
    return size


def _written(record: RunRecord, verb: str) -> float | None:
    outputs = record.manifests[verb].outputs
    return outputs[_WEIGHTS]["bytes"] / 2**20 if _WEIGHTS in outputs else None

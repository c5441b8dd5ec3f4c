"""The model card of an artifact, as Hugging Face reads it; the only importer of huggingface_hub's cards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sieve_edge.device.inspect import inspect_path
from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.files import disk_errors, read_json
from sieve_edge.report import tables
from sieve_edge.report.markdown import write_table
from sieve_edge.report.page import render
from sieve_edge.report.record import RunRecord
from sieve_edge.report.tables import Table

CARD = "README.md"
_TASK_TYPE = "text-generation"


def write_card(
    record: RunRecord, base_model: str | None = None, file: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Write the model card.

    Args:
        record: The build.
        base_model: Model on the hub that was pruned, where its files do not name it.
        file: File to write; None for the one next to the pruned artifact.

    Returns:
        ``(card, the fields of its header that were carried over)``.

    Raises:
        EnvironmentMissing: If huggingface_hub is not installed.
        ArtifactError: If the build did not record its source.
    """
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError as error:
        raise EnvironmentMissing(
            "the package huggingface_hub is missing; run: pip install 'sieve-edge[torch]'"
        ) from error
    source = record.result.get("source")
    if source is None:
        raise ArtifactError(f"{record.root}: the build did not record its source; run: {record.result['command']}")
    carried = {"base_model": base_model or source["hub_id"], "license": source["license"]}
    link = {name: source[name] for name in ("license_name", "license_link") if source[name]}
    data = ModelCardData(
        **carried,
        **link,
        library_name=record.target["format"],
        pipeline_tag=_TASK_TYPE,
        tags=["sieve-edge", "pruned", record.result["task"]],
        datasets=_datasets(record) or None,
        model_name=record.root.resolve().name,
        eval_results=_results(record),
    )
    text = render("card.md.j2", **_body(record, source, carried))
    file = file or card_file(record.root)
    with disk_errors(file):
        ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(file)
    return file, carried


def card_file(run: Path) -> Path:
    """Say where the model card of a build is, next to the pruned artifact.

    Args:
        run: The run's folder.

    Returns:
        The file, which may not be there yet.
    """
    return run / "export" / "pruned" / CARD


def _results(record: RunRecord) -> list[Any]:
    """List what was measured in the target's runtime, for the header's model-index."""
    from huggingface_hub import EvalResult

    result = record.result
    shared = {"task_type": _TASK_TYPE, "dataset_type": result["task"], "dataset_name": result["task"]}
    found = []
    for split in tables.SPLITS:
        score, metric = result["accuracy"]["pruned"][split]["corrected"], result["metric"]
        measured = ((metric, score), ("relative_loss", result["loss"][split]))
        found += [
            EvalResult(**shared, dataset_split=split, metric_type=name, metric_value=round(value, 4))
            for name, value in measured
        ]
    return found


def _datasets(record: RunRecord) -> list[str]:
    """List the data sets of the hub that it was calibrated on."""
    paths = [source["path"] for source in record.manifests["calibrate"].metrics["sources"]]
    names = [
        "/".join(path.removeprefix("hf:").split(":")[0].split("/")[:2]) for path in paths if path.startswith("hf:")
    ]
    return sorted(set(names))


def _as_text(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join(f"{each['role']}: {each['content']}" for each in messages)


def _body(record: RunRecord, source: dict[str, Any], carried: dict[str, Any]) -> dict[str, Any]:
    folder, result = record.root / "export" / "pruned", record.result
    facts, found = read_json(folder / "sieve_edge.json"), inspect_path(folder)
    prior = [
        (label, repr(answer), f"{bias:.4f}")
        for (label, answer), bias in zip(facts["labels"], facts["prior"]["pruned"], strict=True)
    ]
    prompt = facts["prompt"] or _as_text(facts["messages"])
    shots = facts.get("shots", "")
    return {
        "name": record.root.resolve().name,
        "record": record,
        "source": source,
        "carried": carried,
        "facts": facts,
        "prompt": prompt,
        "shots": shots if isinstance(shots, str) else _as_text(shots),
        "prior": write_table(Table(("label", "answer", "added to its log-likelihood"), prior)) if prior else "",
        "loads_in": found["loads_in"],
        "factored": bool(found["ranks"]),
        "params": found["params"],
        "limits": write_table(tables.checks(result)),
        "scores": write_table(tables.scores(result)),
        "losses": write_table(tables.losses(result)),
        "times": write_table(tables.times(result)),
        "footprint": write_table(tables.footprint(result)),
    }

"""Several builds side by side: targets, tolerances, tasks."""

from collections import Counter
from collections.abc import Sequence

from sieve_edge.report import figures, plan_figures, tables
from sieve_edge.report.kept import read_kept
from sieve_edge.report.markdown import markdown, write_table
from sieve_edge.report.page import bottlenecks, render, run_page
from sieve_edge.report.provenance import flat_settings
from sieve_edge.report.record import RunRecord
from sieve_edge.report.tables import Table, interval

_LONGEST = 60
"""Settings whose value is longer are cut in the table."""


def labels(records: Sequence[RunRecord]) -> list[str]:
    """Name builds by their target, with the task where targets repeat, and with the folder where that does too.

    Args:
        records: Builds.

    Returns:
        One name for each, all different.
    """
    names = [
        [record.target["name"] for record in records],
        [f"{record.result['task']} on {record.target['name']}" for record in records],
        [record.root.name for record in records],
    ]
    return next((each for each in names if max(Counter(each).values()) == 1), [str(record.root) for record in records])


def side_by_side(records: Sequence[RunRecord]) -> Table:
    """List the figures of several builds.

    Args:
        records: Builds.

    Returns:
        One column for each build.
    """
    columns = [_column(record) for record in records]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return Table(("", *labels(records)), rows)


def differing_settings(records: Sequence[RunRecord]) -> Table:
    """List the settings that are not the same in all builds.

    Args:
        records: Builds.

    Returns:
        One row for each; a dash where a build has no such setting.
    """
    found = [flat_settings(record) for record in records]
    stages: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path, verb in sorted({key for each in found for key in each}):
        values = tuple(_short(each.get((path, verb), "-")) for each in found)
        stages.setdefault((path, values), []).append(verb)
    rows = [
        (f"{path} ({', '.join(verbs)})", *values) for (path, values), verbs in stages.items() if len(set(values)) > 1
    ]
    return Table(("setting (stages)", *labels(records)), rows)


def mixed(records: Sequence[RunRecord]) -> str:
    """Warn where scores or times of builds are not of the same thing.

    Args:
        records: Builds.

    Returns:
        Sentences, or an empty text.
    """
    told = []
    if len({record.manifests["validate"].inputs["splits"] for record in records}) > 1:
        told.append("These builds were scored on different examples: compare losses, not scores.")
    if len({record.manifests["validate"].inputs["model"] for record in records}) > 1:
        told.append("They start from different models.")
    return " ".join(told)


def report_markdown(records: Sequence[RunRecord]) -> str:
    """Write one build's report, or the comparison of several, as Markdown.

    Args:
        records: Builds.

    Returns:
        Markdown.
    """
    if len(records) == 1:
        return markdown(records[0].result)
    differing = differing_settings(records)
    sections = [
        f"# {len(records)} builds compared",
        mixed(records),
        write_table(side_by_side(records)),
        f"## What differs in their settings\n\n{write_table(differing)}" if differing.rows else "",
        "## Reproduce\n\n" + "\n".join(f"- `{record.result['command']}`" for record in records),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def report_page(records: Sequence[RunRecord]) -> str:
    """Make one build's page, or the page that compares several.

    Args:
        records: Builds.

    Returns:
        HTML, self-contained.
    """
    if len(records) == 1:
        return run_page(records[0])
    names = labels(records)
    runs = []
    for number, (name, record) in enumerate(zip(names, records, strict=True), 1):
        matrices = read_kept(record.root / "learn", record.plan)
        heat = plan_figures.heat_figure(f"heat-{number}", matrices, bottlenecks(record))
        runs.append({"id": f"run-{number}", "label": name, "record": record, "heat": heat})
    return render(
        "compare.html.j2",
        runs=runs,
        mixed=mixed(records),
        side_by_side=side_by_side(records),
        settings=differing_settings(records),
        figures=[
            (f"Score on {split}, 95 % intervals", figures.scores_figure(f"scores-{split}", names, records, split))
            for split in tables.SPLITS
        ]
        + [
            (title, figures.pairs_figure(f"pairs-{number}", title, names, [_pair(record, path) for record in records]))
            for number, (title, path) in enumerate(_PAIRS.items())
        ],
    )


_PAIRS = {
    "Time per answer, ms": ("timing", "time_per_answer_ms"),
    "Graph and weights, MiB": ("size_mib",),
    "Peak memory, MiB": ("peak_memory_mib",),
}
"""Figure -> where its values are: in the part, by model, then by the field."""


def _pair(record: RunRecord, path: Sequence[str]) -> tuple[float, float]:
    dense, pruned = (record.result[path[0]][name] for name in tables.MODELS)
    return (dense[path[1]], pruned[path[1]]) if len(path) > 1 else (dense, pruned)


def _column(record: RunRecord) -> dict[str, str]:
    result = record.result
    accuracy, loss, timing = result["accuracy"], result["loss"], result["timing"]
    scores = {
        f"{split}, {name}": f"{of['corrected']:.3f} ({interval(of['interval95'])})"
        for split in tables.SPLITS
        for name in tables.MODELS
        for of in (accuracy[name][split],)
    }
    return {
        "verdict": tables.verdict(result).rstrip("."),
        "task": result["task"],
        "target": record.target["name"],
        "weights": f"{record.target['format']}, {record.target['quantization']}",
        "tolerance": f"{record.tolerance:.1%}",
        "kept of the linears": f"{result['kept_fraction']['linears']:.1%}",
        "kept of the model": f"{result['kept_fraction']['model']:.1%}",
        "metric": result["metric"].replace("_", " "),
        **scores,
        "loss, selection": f"{loss['selection']:.2%}",
        "loss, test": f"{loss['test']:.2%} ({interval(loss['interval95'], '%')})",
        "loss, transfer": f"{loss['transfer']:.2%} ({interval(loss['transfer_interval95'], '%')})",
        "time per answer, ms": _change(*_pair(record, ("timing", "time_per_answer_ms"))),
        "times as fast, paired": f"{timing['pruned']['speed_ratio']:.2f}",
        "time per token p50, ms": _change(*_pair(record, ("timing", "time_per_token_p50_ms"))),
        "graph and weights, MiB": _change(*_pair(record, ("size_mib",))),
        "peak memory, MiB": _change(*_pair(record, ("peak_memory_mib",))),
        "fallbacks": str(len(result["fallbacks"])),
        "build, minutes": f"{sum(result['seconds'].values()) / 60:.1f}",
    }


def _change(dense: float, pruned: float) -> str:
    return f"{dense:.1f} to {pruned:.1f}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

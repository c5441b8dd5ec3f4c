"""The report of a build as one short page of Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sieve_edge.files import disk_errors
from sieve_edge.report import device, tables, tuned
from sieve_edge.report.tables import Result, Table

PAGE = "report.md"


def write_report(result: Result, out: Path) -> Path:
    """Write the page.

    Args:
        result: Figures of ``validate``, with what the pipeline adds; see ``markdown``.
        out: Folder of the page.

    Returns:
        The page, ``report.md``.
    """
    page = out / PAGE
    with disk_errors(page):
        page.write_text(markdown(result), encoding="utf-8")
    return page


def markdown(result: Result) -> str:
    """Put the page together.

    Args:
        result: Figures of ``validate``, with what the pipeline adds: ``seconds`` by stage, ``fallbacks`` and
            ``command``; a section whose figures are not there is left out.

    Returns:
        Markdown.
    """
    sections = [
        _verdict(result),
        _quality(result),
        _tuning(result),
        f"## Time\n\n{tables.workload(result)}\n\n{write_table(tables.times(result))}",
        f"## Size and memory\n\n{write_table(tables.footprint(result))}\n\n{tables.fidelity(result)}",
        f"## Device\n\n{device.told(result)}\n\n{write_table(device.states(result))}",
        _seconds(result),
        _bullets("Fallbacks", result.get("fallbacks", ())),
        _bullets("Reproduce", [f"`{result['command']}`"] if "command" in result else ()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_table(table: Table) -> str:
    """Write a table.

    Args:
        table: The table.

    Returns:
        Markdown.
    """
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _verdict(result: Result) -> str:
    checks = tables.checks(result)
    rows = [(*row[:-1], row[-1] if row[-1] == "yes" else f"**{row[-1]}**") for row in checks.rows]
    return (
        f"# {result['task']} on {result['target']}\n\n**{tables.verdict(result)}** {tables.kept(result)}\n\n"
        + write_table(Table(checks.head, rows))
    )


def _quality(result: Result) -> str:
    judged = tables.verdicts(result)
    told = [
        "## Accuracy",
        tables.metric(result),
        write_table(tables.scores(result)),
        tables.LOSSES,
        write_table(tables.losses(result)),
        tables.judging(result),
        write_table(judged) if judged else "",
    ]
    return "\n\n".join(part for part in told if part)


def _tuning(result: Result) -> str:
    tune = result.get("tune")
    if tune is None:
        return ""
    told, table = tuned.scores(tune)
    warning = tuned.warning(tune)
    marked = f'<span style="color: red">**{warning}**</span>' if warning else ""
    parts = ["## Tuning", told, write_table(table), tuned.against_dense(tune), marked]
    return "\n\n".join(part for part in parts if part)


def _seconds(result: Result) -> str:
    spent = result.get("seconds", {})
    return f"## Where the time went\n\n{write_table(tables.seconds(spent))}" if spent else ""


def _bullets(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}\n", *(f"- {line}" for line in lines)]) if lines else ""

"""Writes what is generated in README.md and docs/: ``python -m benchmarks.readme [--run RUN] [--check]``.

The tables of builds come from their ``result.json`` (kept as benchmarks/results/build-RUN.json, beside the report as
docs/reports/RUN.md), the help from the commands themselves, the list of files from their first docstring lines.
"""

import argparse
import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from benchmarks._tables import RESULTS, TABLES, markdown
from sieve_edge.cli import cli
from sieve_edge.files import read_json, write_json

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/measurements.md")
REPORTS = ROOT / "docs" / "reports"
SHOWN_WHOLE = "movie-sentiment"
"""Task whose builds have a table each; those of other tasks have a row each."""


def main() -> None:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a finished build, whose result becomes the table")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is out of date")
    arguments = parser.parse_args()
    if arguments.run:
        _keep(arguments.run.resolve())
    changed = []
    for name in DOCUMENTS:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = render(old)
        if new == old:
            continue
        changed.append(name)
        if not arguments.check:
            (ROOT / name).write_text(new, encoding="utf-8")
    if arguments.check and changed:
        sys.exit(f"{', '.join(changed)}: out of date; run: python -m benchmarks.readme")
    print(json.dumps({"benchmark": "readme", "changed": changed}))


def _keep(run: Path) -> None:
    write_json(RESULTS / f"build-{run.name}.json", read_json(run / "result.json"))
    REPORTS.mkdir(exist_ok=True)
    shutil.copyfile(run / "report.md", REPORTS / f"{run.name}.md")


def render(text: str) -> str:
    """Fill the generated parts of a document.

    Args:
        text: The document.

    Returns:
        The document with every block between ``<!-- generated NAME -->`` and ``<!-- end -->`` written anew.
    """
    parts = {
        "results": results,
        "builds": builds,
        **TABLES,
        "help": help_text,
        "files": files,
    }

    def block(match: re.Match[str]) -> str:
        return f"<!-- generated {match[1]} -->\n{parts[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def results() -> str:
    """Make the table of every kept build of the first task.

    Returns:
        Markdown.
    """
    tables = [_table(result) for _, result in _kept() if result["task"] == SHOWN_WHOLE]
    return "\n\n".join(tables) or "No build is kept yet."


def builds() -> str:
    """Make a table with a row for every kept build of another task.

    Returns:
        Markdown.
    """
    heads = (
        "build",
        "metric",
        "dense, test",
        "pruned",
        "loss, 95 % interval",
        "kept",
        "ms an answer",
        "MiB",
        "minutes",
    )
    lines: list[tuple[str, ...]] = [heads, ("---",) * len(heads)]
    for name, result in _kept():
        if result["task"] == SHOWN_WHOLE:
            continue
        scores = [f"{result['accuracy'][side]['test']['corrected']:.3f}" for side in ("dense", "pruned")]
        low, high = result["loss"]["interval95"]
        times = [f"{result['timing'][side]['time_per_answer_ms']:.0f}" for side in ("dense", "pruned")]
        sizes = [f"{result['size_mib'][side]:.0f}" for side in ("dense", "pruned")]
        missed = [check["name"] for check in result["checks"] if not check["passed"]]
        tuned = ", tuned" if result.get("tune") else ""
        told = f"missed: {', '.join(missed)}" if missed else "passed"
        title = f"{result['task']}, {result['target']}, {result['source']['name']}{tuned}"
        lines.append(
            (
                f"[{title}](docs/reports/{name}.md): {told}",
                result["metric"].replace("_", " "),
                *scores,
                f"{result['loss']['test']:.1%} ({low:.1%} to {high:.1%})",
                f"{result['kept_fraction']['linears']:.3f}",
                " to ".join(times),
                " to ".join(sizes),
                f"{sum(result['seconds'].values()) / 60:.1f}",
            )
        )
    return markdown(lines)


def _kept() -> list[tuple[str, dict[str, Any]]]:
    files = sorted(RESULTS.glob("build-*.json"))
    return [(file.stem.removeprefix("build-"), read_json(file)) for file in files]


def _table(result: dict[str, Any]) -> str:
    kept, size = result["kept_fraction"], result["size_mib"]
    low, high = result["loss"]["interval95"]
    rows: list[tuple[str, ...]] = [("", "dense", "pruned")]
    for split in ("test", "transfer"):
        for kind in ("raw", "corrected"):
            cells = [f"{result['accuracy'][name][split][kind]:.3f}" for name in ("dense", "pruned")]
            rows.append((f"{result['metric'].replace('_', ' ')}, {split}, {kind}", *cells))
    for field, unit in (("time_per_answer_ms", "ms"), ("time_per_token_p50_ms", "ms"), ("prompt_tokens_per_s", "/s")):
        cells = [f"{result['timing'][name][field]:.1f}" for name in ("dense", "pruned")]
        rows.append((f"{field.replace('_', ' ').removesuffix(' ms').removesuffix(' per s')}, {unit}", *cells))
    rows.append(("peak memory, MiB", *[f"{result['peak_memory_mib'][name]:.0f}" for name in ("dense", "pruned")]))
    rows.append(("graph and weights, MiB", *[f"{size[name]:.0f}" for name in ("dense", "pruned")]))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---|---|---|")
    loss = result["loss"]
    losses = ", ".join(f"{split} {loss[split]:.3f}" for split in ("selection", "test", "transfer"))
    minutes = sum(result["seconds"].values()) / 60
    return "\n".join(
        [
            f"`{result['command']}`, {minutes:.1f} minutes: {'passed' if result['passed'] else 'a limit was missed'}.",
            f"Kept {kept['linears']:.3f} of the linears' parameters, {kept['model']:.3f} of the model's.",
            f"Relative loss: {losses} (95 % interval on test {low:.3f} to {high:.3f}).",
            f"{result['accuracy']['baseline']['is'].capitalize()}: {result['accuracy']['baseline']['score']:.3f}.",
            f"The source file is 4-bit already: {size['source']:.0f} MiB.",
            "",
            *lines,
        ]
    )


def help_text() -> str:
    """Print the help of the main command and of ``build``.

    Returns:
        Markdown.
    """
    runner = CliRunner()
    texts = []
    for words in ([], ["build"]):
        output = runner.invoke(cli, [*words, "--help"], prog_name="sieve-edge", terminal_width=100).output
        said = " ".join(["sieve-edge", *words, "--help"])
        texts.append(f"```sh\n{said}\n```\n\n```text help\n{output.rstrip()}\n```")
    assert isinstance(cli, click.Group)  # noqa: S101 (mypy: a group has commands)
    return "\n\n".join(texts)


def files() -> str:
    """List every module with the first line of its docstring.

    Returns:
        Markdown.
    """
    lines = []
    for file in sorted((ROOT / "sieve_edge").rglob("*.py")):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"- `{file.relative_to(ROOT)}`: {doc.splitlines()[0] if doc else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Writes what is generated in README.md and docs/: ``python -m benchmarks.readme [--run RUN] [--check]``.

The results table comes from a build's ``result.json`` (kept as benchmarks/results/build-TARGET.json), the help from the
commands themselves, the list of files from their first docstring lines.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from sieve_edge.cli import cli
from sieve_edge.files import read_json, write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/measurements.md")


def main() -> None:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a finished build, whose result becomes the table")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is out of date")
    arguments = parser.parse_args()
    if arguments.run:
        result = read_json(arguments.run / "result.json")
        write_json(RESULTS / f"build-{result['target']}.json", result)
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


def render(text: str) -> str:
    """Fill the generated parts of a document.

    Args:
        text: The document.

    Returns:
        The document with every block between ``<!-- generated NAME -->`` and ``<!-- end -->`` written anew.
    """
    parts = {
        "results": results,
        "search": search,
        "waterfall": waterfall,
        "runtime": runtime,
        "fixed": fixed,
        "operators": operators,
        "containers": containers,
        "help": help_text,
        "files": files,
    }

    def block(match: re.Match[str]) -> str:
        return f"<!-- generated {match[1]} -->\n{parts[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def results() -> str:
    """Make the results table of every kept build.

    Returns:
        Markdown.
    """
    tables = [_table(read_json(file)) for file in sorted(RESULTS.glob("build-*.json"))]
    return "\n\n".join(tables) or "No build is kept yet."


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


def search() -> str:
    """Make the table of the search strategies.

    Returns:
        Markdown.
    """
    kept = read_json(RESULTS / "search.json")
    columns = ("strategy", "kept_fraction", "selection_accuracy", "test_accuracy", "transfer_accuracy")
    counts = ("evaluations", "tokens_scored")
    lines = [[name.replace("_", " ") for name in (*columns, *counts)], ["---"] * len((*columns, *counts))]
    for row in kept["rows"]:
        figures = [f"{row[name]:.3f}" for name in columns[1:]]
        lines.append([row["strategy"], *figures, *(f"{row[name]:,}" for name in counts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def waterfall() -> str:
    """Make the table of what each step of a build is worth.

    Returns:
        Markdown.
    """
    file = RESULTS / "waterfall.json"
    if not file.is_file():
        return "Not measured yet."
    columns = {"size_mib": "MiB", "test_accuracy": "test accuracy", "transfer_accuracy": "transfer accuracy"}
    columns |= {
        "time_per_answer_ms": "ms an answer",
        "tokens_per_s": "tokens/s",
        "prompt_tokens_per_s": "prompt tokens/s",
    }
    digits = (0, 3, 3, 1, 1, 0)
    lines = [["format", "step", "weights", *columns.values()], ["---"] * (3 + len(columns))]
    for row in read_json(file)["rows"]:
        values = zip((row[name] for name in columns), digits, strict=True)
        cells = ["" if value is None else f"{value:.{places}f}" for value, places in values]
        lines.append([row["format"], row["step"], row["weights"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runtime() -> str:
    """Make the table of speeds by runtime, weights and form, with two threads.

    Returns:
        Markdown.
    """
    file = RESULTS / "runtime.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.runtime`."
    columns = ("model", "runtime", "weights", "form", "kept", "MiB")
    ratios = ("decode ratio", "decode bound", "prompt ratio", "prompt bound")
    lines = [[*columns, *ratios], ["---"] * len((*columns, *ratios))]
    for row in read_json(file)["rows"]:
        if row["threads"] == 2:
            words = [str(row[name]) for name in columns[:4]]
            lines.append([*words, f"{row['kept']:.2f}", f"{row['MiB']:.0f}", *(f"{row[name]:.2f}" for name in ratios)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fixed() -> str:
    """Split times into what grows with bytes or multiplications and what does not, by lines through dense and pairs.

    Returns:
        Markdown.
    """
    file = RESULTS / "runtime.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.runtime`."
    forms: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    for row in read_json(file)["rows"]:
        if row["form"].split()[0] in ("dense", "pair"):
            key = (row["model"], row["runtime"], row["weights"], str(row["threads"]))
            decode = (row["MiB"], 1e3 / row["decode tok/s"])
            forms.setdefault(key, []).append((*decode, 1.0 / row["prompt bound"], 1e3 / row["prompt tok/s"]))
    kinds = ("dense decode step, ms", "prompt, ms a token")
    head: tuple[str, ...] = (
        "model",
        "runtime",
        "weights",
        "threads",
        *(f"{kind}{more}" for kind in kinds for more in ("", ": fixed")),
    )
    lines = [head, ("---",) * len(head)]
    for measured, points in forms.items():
        mib, step_ms, multiplications, token_ms = np.asarray(points).T
        cells = []
        for size, spent_ms in ((mib, step_ms), (multiplications, token_ms)):
            slope, fixed_ms = np.polyfit(size, spent_ms, 1)
            miss = np.abs(slope * size + fixed_ms - spent_ms).max()
            cells += [f"{spent_ms[0]:.1f}", f"{fixed_ms:.1f} (line within {miss:.1f})"]
        lines.append((*measured, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def operators() -> str:
    """Make the table of where a decode step and a prompt spend their time, the five longest operators of each.

    Returns:
        Markdown.
    """
    file = RESULTS / "operators.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.operators`."
    spent: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    columns = ("model", "runtime", "weights", "phase", "form")
    for row in read_json(file)["rows"]:
        spent.setdefault(tuple(row[name] for name in columns), []).append((row["operator"], row["ms"]))
    lines = [[*columns, "ms", "of these"], ["---"] * 7]
    for key, times in sorted(spent.items(), key=lambda item: item[0][:4]):
        longest = ", ".join(f"{name} {ms:.1f}" for name, ms in times[:5])
        lines.append([*key, f"{sum(ms for _, ms in times):.1f}", longest])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def containers() -> str:
    """Make the tables of the container images and of what was run in them.

    Returns:
        Markdown.
    """
    file = RESULTS / "containers.json"
    if not file.is_file():
        return "Not measured yet: `make test-containers`."
    kept = read_json(file)
    lines = [["image", "for", "MiB", "of these its base"], ["---"] * 4]
    lines += [[row["image"], row["arch"], f"{row['MiB']:.0f}", f"{row['base MiB']:.0f}"] for row in kept["images"]]
    heads = ["build", "validated on", "test accuracy there, in the build", "largest logit difference"]
    lines += [[], heads, ["---"] * 4]
    for row in kept["devices"]:
        scores = [f"{row[name]:.3f}" for name in ("test accuracy", "in the build") if name in row]
        where = f"{row['arch']}, emulated" if row["emulated"] else row["arch"]
        lines.append([row["build"], where, ", ".join(scores) or "not scored", f"{row['largest logit difference']:.1e}"])
    tables = [f"| {' | '.join(line)} |" if line else "" for line in lines]
    builds = [f"Build {row['build']}, {row['seconds'] / 60:.1f} minutes: `{row['command']}`." for row in kept["builds"]]
    return "\n".join([*tables, "", *builds])


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

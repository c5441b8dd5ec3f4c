"""Tables of measurements, for ``benchmarks.readme``: one function a kept result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sieve_edge.files import read_json

RESULTS = Path(__file__).parent / "results"


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
    return markdown(lines)


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
    rows = read_json(file)["rows"]
    for row in rows:
        values = zip((row[name] for name in columns), digits, strict=True)
        cells = ["" if value is None else f"{value:.{places}f}" for value, places in values]
        lines.append([row["format"], row["step"], row["weights"], *cells])
    formats = dict.fromkeys(row["format"] for row in rows)
    told = [_worth(name, {row["step"]: row for row in rows if row["format"] == name}) for name in formats]
    return "\n".join([markdown(lines), "", *told])


def _worth(name: str, steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Compare the last file with what is possible without pruning, and each step with the one before."""
    final = steps["4bit"]

    def lost(step: str, against: str, split: str = "test") -> float:
        return 1.0 - float(steps[step][f"{split}_accuracy"] / steps[against][f"{split}_accuracy"])

    def points(step: str, against: str) -> float:
        return 100.0 * float(steps[step]["test_accuracy"] - steps[against]["test_accuracy"])

    sizes = [final["size_mib"] / steps[step]["size_mib"] for step in ("dense+vocabulary+4bit", "dense")]
    losses = [[lost("4bit", against, split) for against in ("dense", "dense+lora")] for split in ("test", "transfer")]
    return (
        f"- `{name}`: `4bit` is {sizes[0]:.2f} of `dense+vocabulary+4bit` (test accuracy "
        f"{points('4bit', 'dense+vocabulary+4bit'):+.1f} points), and {sizes[1]:.3f} of `dense`. It loses on test "
        f"{losses[0][0]:.1%} against `dense` and {losses[0][1]:.1%} against `dense+lora`, on transfer "
        f"{losses[1][0]:.1%} and {losses[1][1]:.1%}. From float32, `8bit` differs by "
        f"{points('8bit', 'vocabulary'):+.1f} points and `4bit` by {points('4bit', 'vocabulary'):+.1f}. Tuning takes "
        f"the loss on test against `dense+lora` from {lost('refit', 'dense+lora'):.1%} to "
        f"{lost('tuned', 'dense+lora'):.1%}."
    )


def tuning() -> str:
    """Make the table of what tuning is worth by its loss and arithmetic.

    Returns:
        Markdown.
    """
    file = RESULTS / "tuning.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.tuning`."
    splits = [f"{split}_accuracy" for split in ("selection", "test", "transfer")]
    heads = ["loss", "arithmetic", "kept", "best step", "minutes", *(name.replace("_", " ") for name in splits)]
    lines: list[Sequence[str]] = [heads, ["---"] * len(heads)]
    rows = read_json(file)["rows"]
    for row in rows:
        trained = row["steps"] > 0
        how = [row["dtype"], f"{row['kept_linears']:.3f}", f"{row['best_step']} of {row['steps']}"]
        how += [f"{row['seconds'] / 60:.1f}"]
        cells = how if trained else ["", how[1], "", ""]
        lines.append([row["loss"], *cells, *(f"{row[name]:.3f}" for name in splits)])
    return "\n".join([markdown(lines), "", _left(rows)])


def _left(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what tuning leaves of the loss against the dense model tuned alike, which the waterfall has."""
    steps = {(row["format"], row["step"]): row for row in read_json(RESULTS / "waterfall.json")["rows"]}
    dense = steps["onnx", "dense+lora"]["test_accuracy"]
    lost = [f"{1.0 - row['test_accuracy'] / dense:.1%} ({row['loss']} {row['dtype']})" for row in rows[1:]]
    return (
        f"Against `dense+lora` of the table before, {dense:.3f} on test, the loss of "
        f"{1.0 - rows[0]['test_accuracy'] / dense:.1%} untuned becomes {', '.join(lost)}."
    )


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
    return markdown(lines)


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
    return markdown(lines)


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
    return markdown(lines)


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


def times() -> str:
    """Make the table of predicted and measured times, and of how well they agree.

    Returns:
        Markdown.
    """
    file = RESULTS / "times.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.times`."
    kinds = ("answer", "token")
    heads = [name for kind in kinds for name in (f"{kind}, ms", "predicted", "error")]
    lines: list[Sequence[str]] = [["target", "kept", *heads], ["---"] * 8]
    found: dict[str, str] = {}
    for row in read_json(file)["rows"]:
        cells = [
            cell
            for kind in kinds
            for cell in (
                f"{row[f'{kind} ms']:.2f}",
                f"{row[f'predicted {kind} ms']:.2f}",
                f"{row[f'{kind} error']:+.1%}",
            )
        ]
        lines.append([row["target"], f"{row['kept']:.2f}", *cells])
        told = [
            f"{kind}s: rank correlation {row[f'{kind} rank correlation']:.3f}, "
            f"median error {row[f'{kind} median error']:.1%}"
            for kind in kinds
        ]
        found[row["target"]] = f"`{row['target']}`, {'; '.join(told)}."
    return "\n".join([markdown(lines), "", *found.values()])


def rag() -> str:
    """Make the table of the shipped RAG tasks, dense and pruned once.

    Returns:
        Markdown; under the table what was set for rows that are not of the default target and settings.
    """
    file = RESULTS / "rag.json"
    if not file.is_file():
        return "Not measured yet: `python -m benchmarks.rag`."
    heads = ["task", "model", "metric", "dense", "95 % interval", "of no use", "kept", "pruned"]
    lines: list[Sequence[str]] = [heads, ["---"] * len(heads)]
    notes = []
    for row in read_json(file)["rows"]:
        if "pruned_score" in row and (row["settings"] or row["target"] != "x86-cpu"):
            asked = " ".join([f"--target {row['target']}", *(f"--set {setting}" for setting in row["settings"])])
            notes.append(f"{row['task']} with {row['model']} was pruned with `{asked}`.")
        low, high = row["dense_interval95"]
        facts = [row["task"], row["model"], row["metric"].replace("_", " "), f"{row['dense_score']:.3f}"]
        facts += [f"{low:.3f} to {high:.3f}", f"{row['dense_baseline']:.3f} ({row['dense_baseline_is']})"]
        if "refused" in row:
            facts += ["", "refused: on the selection split the dense model is not above what is of no use"]
        elif "pruned_score" in row:
            facts += [f"{row['kept_linears']:.3f}", f"{row['pruned_score']:.3f}"]
        else:
            facts += ["", "not pruned yet" if low > row["dense_baseline"] else "not above what is of no use"]
        lines.append(facts)
    return "\n\n".join([markdown(lines), *notes])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Write a table.

    Args:
        lines: Cells of every line; the second one is dashes.

    Returns:
        Markdown.
    """
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made for made in (search, waterfall, tuning, runtime, fixed, operators, times, containers, rag)
}
"""Name of a generated part -> what makes it."""

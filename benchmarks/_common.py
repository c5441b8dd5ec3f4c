"""What every benchmark shares: its options, the demo model, the table and the JSON line."""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks._tables import RESULTS
from sieve_edge.config import Target
from sieve_edge.device.agent import processor
from sieve_edge.files import write_json
from sieve_edge.model.load import LoadedModel, load_model
from sieve_edge.model.source import find_model
from sieve_edge.pipeline import build
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.resolve import load_recipe, load_target, load_task
from sieve_edge.run import Run
from sieve_edge.task.examples import Example, load_splits, splits_sha256
from sieve_edge.task_config import Task

QUICK_UNIFORM = (
    "calibration_tokens=3000",
    "learn.fisher_prompts=32",
    "search.strategy=uniform",
    "search.resolution=0.3",
)
"""Settings of a short build, without the search's own strategy."""
_QUICK_SPLITS = {"calibration": 200, "selection": 100, "test": 100, "transfer": 40}


@dataclass(frozen=True)
class Demo:
    """The demo's model, task and data."""

    loaded: LoadedModel
    target: Target
    task: Task
    recipe: Recipe
    splits: dict[str, tuple[Example, ...]]

    def ended(self, ids: list[int]) -> bool:
        """Say whether an answer of the model's own is complete.

        Args:
            ids: Its tokens so far.

        Returns:
            True after the end token.
        """
        return ids[-1] in self.loaded.ends

    def prompts(self, split: str, count: int) -> list[list[int]]:
        """Tokenize prompts.

        Args:
            split: Name of the split.
            count: How many.

        Returns:
            Token ids of each.
        """
        return [self.loaded.encode(example.prompt) for example in self.splits[split][:count]]


def options(description: str, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Parse the options that every benchmark has.

    Args:
        description: What the benchmark measures.
        parts: What of it can be measured alone.

    Returns:
        ``quick``, ``threads``, ``target`` and ``only``, the parts that are measured.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller measurement, in under 3 minutes")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--target", default="x86-cpu", help="target whose model and task are used (default x86-cpu)")
    if parts:
        told = "which are measured, while the rows of others stay (default all)"
        parser.add_argument("--only", nargs="+", default=list(parts), choices=parts, help=told)
    return parser.parse_args()


def load_demo(arguments: argparse.Namespace) -> Demo:
    """Load what a benchmark runs on.

    Args:
        arguments: What ``options`` returned.

    Returns:
        Model, task and data.
    """
    torch.set_num_threads(arguments.threads)
    target = load_target(arguments.target)
    task, recipe = load_task(target.task), load_recipe(())
    loaded = load_model(find_model(target.model), recipe.main_device)
    return Demo(loaded, target, task, recipe, load_splits(task, recipe.seed))


def quick_task(task: Task) -> Task:
    """Make a task small.

    Args:
        task: The task.

    Returns:
        The same with few examples.
    """
    return task.model_copy(update={"splits": task.splits.model_copy(update=_QUICK_SPLITS)})


def finished_run(demo: Demo, until: str) -> Run:
    """Open the demo's run, building first what is missing.

    Args:
        demo: Model, task and data.
        until: Last stage that is needed.

    Returns:
        The run.
    """
    source = demo.loaded.source
    root = Path("runs") / f"{source.name}-{demo.task.name}-{demo.target.name}"
    run = Run(source, demo.task, demo.target, demo.recipe, root, Progress())
    build(run, until)
    return run


def finish(
    name: str, demo: Demo, arguments: argparse.Namespace, started: float, rows: Sequence[dict[str, Any]]
) -> None:
    """Print the table and the JSON line, and keep the JSON.

    Args:
        name: Name of the benchmark.
        demo: What it ran on.
        arguments: Its options.
        started: ``time.perf_counter()`` at its start.
        rows: Rows with the same keys.
    """
    columns = list(rows[0])
    cells = [columns, *[[_cell(row[column]) for column in columns] for row in rows]]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    document = {
        "benchmark": name,
        "quick": arguments.quick,
        "threads": arguments.threads,
        "model": demo.loaded.source.reference,
        "model_sha256": demo.loaded.source.sha256(),
        "splits_sha256": splits_sha256(demo.splits),
        "versions": versions(),
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 1),
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", document)
    print(json.dumps(document, separators=(",", ":")))


def versions() -> dict[str, str]:
    """Name the versions that figures depend on.

    Returns:
        Package -> version.
    """
    packages = ("torch", "transformers", "numpy", "onnxruntime", "llama-cpp-python")
    return {package: metadata.version(package) for package in packages}


def machine() -> dict[str, str]:
    """Name the machine that figures depend on.

    Returns:
        Processor and system.
    """
    return {"processor": processor(), "system": platform.platform()}


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

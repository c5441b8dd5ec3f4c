"""Predicted against measured times: ``python -m benchmarks.times``.

The time table of a target (``sieve-edge profile``), measured anew, predicts ten plans spread evenly over kept fractions
0.3 to 1.0, each matrix at a level of the grid of its own; they are then exported with random factors, which speed does
not depend on, and timed in turn in one process. ``error`` is predicted / measured - 1. Targets: rank correlation of at
least 0.95, and a median absolute error of at most 10 %, for tokens and for answers. A mixture of types is predicted by
the type that most of its tensors have.
"""

import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks._common import Demo, finish, load_demo, options
from benchmarks._tables import RESULTS
from benchmarks.runtime import shrink_
from sieve_edge.config import Target
from sieve_edge.device.runtimes import Runtime
from sieve_edge.device.times import TimeTable
from sieve_edge.device.timing import Timing, time_models
from sieve_edge.device.workload import workload_prompt
from sieve_edge.files import read_json
from sieve_edge.model.levels import Ranks, kept_params
from sieve_edge.model.load import shared_copy
from sieve_edge.model.matrices import linear_params
from sieve_edge.progress import Progress
from sieve_edge.resolve import load_target
from sieve_edge.run import Run
from sieve_edge.search.assemble import search_space
from sieve_edge.search.budgets import time_budget
from sieve_edge.search.space import SearchSpace
from sieve_edge.timed import profile, write_for_timing

MIXTURE = "Q4_K_M"
TARGETS = (("x86-cpu", None), ("x86-gguf", None), ("x86-gguf", MIXTURE), ("x86-gguf-stock", None))
"""Shipped targets, and the quantization that is asked for in place of the target's own."""

FRACTIONS = np.linspace(1.0, 0.3, 10)
SPREAD = 0.3
"""How far a matrix's factor may lie from the plan's."""


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__, tuple(dict.fromkeys(name for name, _ in TARGETS)))
    started = time.perf_counter()
    demo = load_demo(arguments)
    rows: list[dict[str, Any]] = []
    for name, quantization in TARGETS[:1] if arguments.quick else TARGETS:
        target = load_target(name)
        if quantization:
            target = target.model_copy(update={"quantization": quantization, "name": f"{name}, {quantization}"})
        rows += _rows(demo, target, arguments) if name in arguments.only else _kept_rows(target.name)
    finish("times", demo, arguments, started, rows)


def _kept_rows(target: str) -> list[dict[str, Any]]:
    file = RESULTS / "times.json"
    return [row for row in read_json(file)["rows"] if row["target"] == target] if file.is_file() else []


def _rows(demo: Demo, target: Target, arguments: Namespace) -> list[dict[str, Any]]:
    if arguments.quick:
        workload = target.workload.model_copy(update={"repeats": 5, "decode_tokens": 8})
        target = target.model_copy(update={"workload": workload})
    # A mixture's longest blocks do not fill the rows of every model.
    quantize = demo.recipe.quantize.model_copy(update={"allow_fallback": True})
    recipe = demo.recipe.model_copy(update={"quantize": quantize})
    # Of its own, so that the table is not of another hour, in which the machine was faster or slower.
    with tempfile.TemporaryDirectory() as folder:
        run = Run(demo.loaded.source, demo.task, target, recipe, Path(folder) / "run", Progress())
        space, table = search_space(run.loaded, target, recipe), profile(run)
    plans = [_plan(space, fraction, np.random.default_rng(index)) for index, fraction in enumerate(FRACTIONS)]
    timings = _timings(run, space, plans, workload_prompt(demo.prompts("selection", 600), table.prompt_tokens))
    rows = []
    for ranks, timing in zip(plans, timings, strict=True):
        kept = kept_params(space.specs, ranks, space.storage) / linear_params(space.specs)
        answer, token = (_predicted(table, space, ranks, *counts) for counts in ((1, 0), (0, 1)))
        measured = (timing.time_per_answer_ms, timing.time_per_token_p50_ms)
        rows.append(
            {
                "target": target.name,
                "kept": kept,
                "answer ms": measured[0],
                "predicted answer ms": answer,
                "answer error": answer / measured[0] - 1.0,
                "token ms": measured[1],
                "predicted token ms": token,
                "token error": token / measured[1] - 1.0,
            }
        )
    return [row | _summary(rows) for row in rows]


def _plan(space: SearchSpace, fraction: float, rng: np.random.Generator) -> Ranks:
    """Draw a level for each matrix, near a factor, so that all together keep about that fraction."""
    if fraction == 1.0:
        return {spec.name: None for spec in space.specs}
    ranks: dict[str, int | None] = {}
    for spec, levels in zip(space.specs, space.levels, strict=True):
        wanted = float(np.clip(fraction + rng.uniform(-SPREAD, SPREAD), 0.05, 1.0))
        ranks[spec.name] = levels[int(np.argmin([abs(level.factor - wanted) for level in levels]))].rank
    return ranks


def _timings(run: Run, space: SearchSpace, plans: list[Ranks], prompt: list[int]) -> list[Timing]:
    target = run.target
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for index, ranks in enumerate(plans):
            model = shared_copy(run.loaded.model)
            shrink_(model, space.specs, ranks, space.storage)
            folders[str(index)] = Path(place) / str(index)
            folders[str(index)].mkdir()
            write_for_timing(model, run.loaded.tokenizer, target, folders[str(index)])
        half = target.quantization == "F16"
        runtime = Runtime(target.runtime, target.threads, target.execution_provider, target.gpu_layers, half)
        tokens = 3 * (len(prompt) + target.workload.decode_tokens)
        models = {name: runtime.open(folder, tokens) for name, folder in folders.items()}
        workload = target.workload
        prompts = dict.fromkeys(models, prompt)
        rng = np.random.default_rng(0)
        found = time_models(models, prompts, 1, workload.decode_tokens, workload.repeats, rng)
    return [found[str(index)] for index in range(len(plans))]


def _predicted(table: TimeTable, space: SearchSpace, ranks: Ranks, prompts: int, steps: int) -> float:
    budget = time_budget("time", table, space.storage, prompts, steps, np.inf)
    return budget.cost(space.specs, ranks)


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for kind in ("answer", "token"):
        measured, predicted = ([row[name] for row in rows] for name in (f"{kind} ms", f"predicted {kind} ms"))
        found[f"{kind} rank correlation"] = float(spearmanr(measured, predicted).statistic)
        found[f"{kind} median error"] = float(np.median(np.abs([row[f"{kind} error"] for row in rows])))
    return found


if __name__ == "__main__":
    main()

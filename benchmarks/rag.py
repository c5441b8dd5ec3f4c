"""The shipped RAG tasks, dense and pruned: ``python -m benchmarks.rag``; needs ``make demo-rag``.

Each task is scored by the dense model in PyTorch on its test split, with the prior fitted on the selection split, and
compared with what always giving one answer scores. Where the dense model is above that, it is pruned once by the
build's own search, refitted, and scored again; where it is not, or the build refuses the task, the row says so.
``--model`` names a larger one. The folder is that of ``sieve-edge build``: what a build with the same target and
settings has finished is not done again.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import machine, versions
from benchmarks._tables import RESULTS
from sieve_edge.errors import TaskError
from sieve_edge.files import read_json, write_json
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.source import find_model
from sieve_edge.pipeline import build
from sieve_edge.progress import Progress
from sieve_edge.resolve import load_recipe, load_target, load_task
from sieve_edge.run import Run
from sieve_edge.task.evaluate import score_interval
from sieve_edge.task.exam import RAW, Answers, Exam
from sieve_edge.task.examples import Example

TASKS = ("boolq", "pubmedqa", "medmcqa", "disflqa")
QUICK_EXAMPLES = 100


def main() -> None:
    """Run the benchmark; every task's figures are kept as soon as they are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="dense only, on the first examples")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--model", help="any model (default: the target's)")
    parser.add_argument("--target", default="x86-cpu", help="whose form of the pruned matrices (default x86-cpu)")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="setting of a build, KEY=VALUE")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="which (default all)")
    arguments = parser.parse_args()
    for name in arguments.tasks:
        started = time.perf_counter()
        row = _row(name, arguments)
        print(f"{row} ({time.perf_counter() - started:.0f} s)", flush=True)


def _row(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    target, task = load_target(arguments.target), load_task(name)
    source = find_model(arguments.model or target.model)
    recipe = load_recipe((f"threads={arguments.threads}", *arguments.settings))
    run = Run(source, task, target, recipe, Path("runs") / f"{source.name}-{name}-{target.name}", Progress())
    row: dict[str, Any] = {"task": name, "model": source.name, "metric": task.metric}
    row |= {"target": target.name, "settings": arguments.settings}
    dense = _score(run, run.loaded.model, None, arguments.quick)
    row |= {f"dense_{key}": value for key, value in dense.items()}
    above = dense["interval95"][0] > dense["baseline"]
    row["above_baseline"] = above
    _keep(row, arguments)
    if above and not arguments.quick:
        row |= _pruned(run)
        _keep(row, arguments)
    return row


def _pruned(run: Run) -> dict[str, Any]:
    """Prune and score again; the build looks at the selection split, where a task may be refused that holds on test."""
    try:
        build(run, "fuse")
    except TaskError as error:
        return {"refused": str(error)}
    facts = read_json(run.folder("fuse") / "sieve_edge.json")
    model = load_checkpoint(run.folder("fuse"), run.recipe.main_device)
    pruned, kept = _score(run, model, facts["prior"]["pruned"], quick=False), facts["kept_fraction"]
    return {"kept_linears": kept["linears"], "kept_model": kept["model"], "pruned_score": pruned["score"]}


def _score(run: Run, model: Any, prior: Sequence[float] | None, quick: bool) -> dict[str, Any]:
    """Score on the test split; a prior that is not given is fitted on the selection split first."""
    if prior is None:
        exam, _, answers = _answered(run, model, "selection", quick)
        prior = exam.prior(answers)
    exam, examples, answers = _answered(run, model, "test", quick)
    grades = exam.grade(answers, prior)
    told, baseline = run.examiner.baseline(exam, examples)
    return {
        "examples": len(examples),
        "raw": exam.grade(answers, RAW).score,
        "score": grades.score,
        "interval95": score_interval(grades, np.random.default_rng(0)),
        "baseline": baseline,
        "baseline_is": told,
    }


def _answered(run: Run, model: Any, split: str, quick: bool) -> tuple[Exam, Sequence[Example], Answers]:
    examples = run.splits[split][: QUICK_EXAMPLES if quick else None]
    exam = run.examiner.exam(examples, run.loaded.backend, run.loaded.ends)
    with run.progress.task(f"score {run.task.name}, {split}", len(examples), "prompts") as advance:
        text_model = TorchTextModel(model, run.recipe.main_device)
        return exam, examples, exam.take(text_model, run.recipe.search.batch_tokens, advance)


def _keep(row: dict[str, Any], arguments: argparse.Namespace) -> None:
    file = RESULTS / ("rag-quick.json" if arguments.quick else "rag.json")
    document = read_json(file) if file.is_file() else {}
    others = [old for old in document.get("rows", ()) if (old["task"], old["model"]) != (row["task"], row["model"])]
    rows = sorted([*others, row], key=lambda each: (each["task"], each["model"]))
    facts = {"benchmark": "rag", "quick": arguments.quick, "versions": versions(), "machine": machine()}
    write_json(file, {**facts, "rows": rows})


if __name__ == "__main__":
    main()

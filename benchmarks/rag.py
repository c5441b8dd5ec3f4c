"""The shipped RAG tasks, dense and pruned: ``python -m benchmarks.rag``; needs ``make demo-rag``.

Each task is scored by the dense model in PyTorch on its test split, with the prior fitted on the selection split, and
compared with what always giving one answer scores. Then it is pruned once by the build's own search, refitted, and
scored again; where the build refuses the task, since the selection split does not tell the dense model from such an
answer, the row says so. ``--model`` names a larger one. The folder is that of ``sieve-edge build``: what a build with
the same target and settings has finished is not done again.
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
from sieve_edge.task.exam import DENSE_ANSWERS, RAW, Answers, Exam
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
    refused = {} if arguments.quick else _refused(run)
    dense = _dense(run, calibrated=not (arguments.quick or refused), quick=arguments.quick)
    row |= {f"dense_{key}": value for key, value in dense.items()} | refused
    _keep(row, arguments)
    if not (arguments.quick or refused):
        row |= _pruned(run)
        _keep(row, arguments)
    return row


def _refused(run: Run) -> dict[str, str]:
    """Score on the selection split and gather statistics, as a build does; nothing, or why it refuses the task."""
    try:
        build(run, "calibrate")
    except TaskError as error:
        return {"refused": str(error)}
    return {}


def _dense(run: Run, calibrated: bool, quick: bool) -> dict[str, Any]:
    exam, _ = _exam(run, "selection", quick)
    if calibrated:
        answers = read_json(run.folder("calibrate") / DENSE_ANSWERS)
    else:
        answers = _answers(run, run.loaded.model, exam, "selection")
    return _score(run, run.loaded.model, exam.prior(answers), quick)


def _pruned(run: Run) -> dict[str, Any]:
    build(run, "fuse")
    facts = read_json(run.folder("fuse") / "sieve_edge.json")
    model = load_checkpoint(run.folder("fuse"), run.recipe.main_device)
    pruned, kept = _score(run, model, facts["prior"]["pruned"], quick=False), facts["kept_fraction"]
    return {"kept_linears": kept["linears"], "kept_model": kept["model"], "pruned_score": pruned["score"]}


def _score(run: Run, model: Any, prior: Sequence[float], quick: bool) -> dict[str, Any]:
    exam, examples = _exam(run, "test", quick)
    answers = _answers(run, model, exam, "test")
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


def _exam(run: Run, split: str, quick: bool) -> tuple[Exam, Sequence[Example]]:
    examples = run.splits[split][: QUICK_EXAMPLES if quick else None]
    return run.examiner.exam(examples, run.loaded.backend, run.loaded.ends), examples


def _answers(run: Run, model: Any, exam: Exam, split: str) -> Answers:
    with run.progress.task(f"score {run.task.name}, {split}", len(exam.prompts), "prompts") as advance:
        return exam.take(TorchTextModel(model, run.recipe.main_device), run.recipe.search.batch_tokens, advance)


def _keep(row: dict[str, Any], arguments: argparse.Namespace) -> None:
    file = RESULTS / ("rag-quick.json" if arguments.quick else "rag.json")
    document = read_json(file) if file.is_file() else {}
    others = [old for old in document.get("rows", ()) if (old["task"], old["model"]) != (row["task"], row["model"])]
    rows = sorted([*others, row], key=lambda each: (each["task"], each["model"]))
    facts = {"benchmark": "rag", "quick": arguments.quick, "versions": versions(), "machine": machine()}
    write_json(file, {**facts, "rows": rows})


if __name__ == "__main__":
    main()

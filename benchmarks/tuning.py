"""What tuning is worth by its loss: ``python -m benchmarks.tuning``.

The demo's pruned model, tuned on the right answers and towards the dense model's, everything else being equal; the
default of ``tune.loss`` is the one that scores better on the selection split, which training stops by. The other splits
show whether that holds. Runs lie in ``runs/``; an interrupted benchmark goes on.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks._common import QUICK_UNIFORM, finish, load_demo, options, quick_task
from sieve_edge.artifacts import read_manifest, read_plan
from sieve_edge.pipeline import build
from sieve_edge.progress import Progress
from sieve_edge.resolve import check_build, load_recipe
from sieve_edge.run import Run

LOSSES = ("answer", "distil")
QUICK_SETTINGS = (*QUICK_UNIFORM, "tune.epochs=0.2")


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    task, name = demo.task, f"benchmark-tuning{'-quick' if arguments.quick else ''}"
    settings: tuple[str, ...] = (f"threads={arguments.threads}", "tune.method=lora", "tune.keep=always")
    if arguments.quick:
        task = quick_task(task)
        settings += QUICK_SETTINGS
    rows: list[dict[str, Any]] = []
    for loss in LOSSES:
        recipe = load_recipe((*settings, f"tune.loss={loss}", "tune.compare_dense=false"))
        check_build(demo.target, recipe)
        run = Run(demo.loaded.source, task, demo.target, recipe, Path("runs") / f"{name}-{loss}", Progress())
        build(run, "tune")
        metrics, kept = read_manifest(run.folder("tune")).metrics, read_plan(run.folder("search")).kept_linears
        if not rows:
            rows.append(_row("untuned", kept, metrics["scores"]["untuned"], 0))
        rows.append(_row(loss, kept, metrics["scores"]["tuned"], metrics["training"]["best_step"]))
    finish("tuning", demo, arguments, started, rows)


def _row(loss: str, kept: float, scores: dict[str, float], step: int) -> dict[str, Any]:
    accuracies = {f"{split}_accuracy": scores[split] for split in ("selection", "test", "transfer")}
    return {"loss": loss, "kept_linears": kept, "best_step": step, **accuracies}


if __name__ == "__main__":
    main()

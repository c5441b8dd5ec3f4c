"""What tuning is worth by its loss and arithmetic: ``python -m benchmarks.tuning``.

The demo's pruned model, tuned on the right answers and towards the dense model's, and in float32 and bfloat16,
everything else being equal; the default of ``tune.loss`` is the one that scores better on the selection split, which
training stops by. The other splits show whether that holds. Runs lie in ``runs/``; an interrupted benchmark goes on.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._common import QUICK_UNIFORM, finish, load_demo, options, quick_task
from sieve_edge.artifacts import read_manifest, read_plan
from sieve_edge.pipeline import build
from sieve_edge.progress import Progress
from sieve_edge.resolve import check_build, load_recipe
from sieve_edge.run import Run

VARIANTS = (("answer", "float32"), ("answer", "bfloat16"), ("distil", "float32"))
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
    for loss, dtype in VARIANTS:
        chosen = (f"tune.loss={loss}", f"tune.dtype={dtype}", "tune.compare_dense=false")
        recipe = load_recipe((*settings, *chosen))
        check_build(demo.target, recipe)
        run = Run(demo.loaded.source, task, demo.target, recipe, Path("runs") / f"{name}-{loss}-{dtype}", Progress())
        build(run, "tune")
        manifest, kept = read_manifest(run.folder("tune")), read_plan(run.folder("search")).kept_linears
        metrics = manifest.metrics
        facts: dict[str, Any] = {"loss": loss, "dtype": dtype, "kept_linears": kept}
        if not rows:
            rows.append(
                {**facts, "loss": "untuned", "steps": 0, "best_step": 0, "seconds": 0.0} | _scores(metrics, "untuned")
            )
        facts |= {name: metrics["training"][name] for name in ("steps", "best_step")}
        # Of an uninterrupted run, scoring and looks included.
        rows.append({**facts, "seconds": manifest.seconds} | _scores(metrics, "tuned"))
    finish("tuning", demo, arguments, started, rows)


def _scores(metrics: Mapping[str, Any], factors: str) -> dict[str, float]:
    return {f"{split}_accuracy": metrics["scores"][factors][split] for split in ("selection", "test", "transfer")}


if __name__ == "__main__":
    main()

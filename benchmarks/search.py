"""The strategies of the search: ``python -m benchmarks.search``.

Uniform, the paper's genetic algorithm (2.5 million tokens, or to convergence if that is sooner) and guided, from one
bank, with the same storage, metric, splits, tolerance, acceptance and refit. Each winner is fused, and scored on the
test and transfer sets, which no search sees. Tokens and seconds are those of everything the search asked for, as from
an empty cache: damage checks, rungs and refits included. Runs lie in ``runs/``; an interrupted benchmark goes on.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks._common import Demo, finish, load_demo, options, quick_task
from sieve_edge.artifacts import read_manifest, read_plan
from sieve_edge.files import read_json, read_jsonl, write_json
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.pipeline import build
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.resolve import load_recipe
from sieve_edge.run import Run
from sieve_edge.task_config import Task

GENETIC_TOKENS = 2_500_000
QUICK_SETTINGS = (
    "calibration_tokens=3000",
    "learn.fisher_prompts=32",
    "search.part=40",
    "search.refit_prompts=60",
    "search.genetic.population=6",
    "search.guided.divergence_prompts=8",
    "search.guided.ladder_step=0.2",
    "search.resolution=0.2",
)


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    task, common = demo.task, [f"threads={arguments.threads}"]
    if arguments.quick:
        task = quick_task(task)
        common += QUICK_SETTINGS
    tokens = 20_000 if arguments.quick else GENETIC_TOKENS
    rows: list[dict[str, Any]] = []
    for strategy in ("uniform", "guided", "genetic"):
        settings = (*common, f"search.strategy={strategy}", f"search.genetic.max_tokens={tokens}")
        run = _run(demo, task, load_recipe(settings), strategy, quick=arguments.quick)
        build(run, "fuse")
        if not rows:
            rows.append(_dense_row(run))
        rows.append(_row(run, strategy))
    finish("search", demo, arguments, started, rows)


def _run(demo: Demo, task: Task, recipe: Recipe, strategy: str, *, quick: bool) -> Run:
    source = demo.loaded.source
    root = Path("runs") / f"benchmark-search{'-quick' if quick else ''}-{strategy}"
    return Run(source, task, demo.target, recipe, root, Progress())


def _row(run: Run, strategy: str) -> dict[str, Any]:
    plan = read_plan(run.folder("search"))
    history, _ = read_jsonl(run.folder("search") / "history.jsonl")
    sidecar = read_json(run.folder("fuse") / "sieve_edge.json")
    model = load_checkpoint(run.folder("fuse"), run.recipe.main_device)
    return {
        "strategy": strategy,
        "kept_fraction": plan.kept_linears,
        "selection_accuracy": sidecar["selection"]["pruned"],
        **_unseen(run, "pruned", model, sidecar["prior"]["pruned"]),
        "evaluations": len(history),
        "tokens_scored": plan.tokens_scored,
        "seconds": round(sum(record["seconds"] for record in history), 1),
    }


def _dense_row(run: Run) -> dict[str, Any]:
    sidecar = read_json(run.folder("fuse") / "sieve_edge.json")
    return {
        "strategy": "dense",
        "kept_fraction": 1.0,
        "selection_accuracy": sidecar["selection"]["dense"],
        **_unseen(run, "dense", run.loaded.model, sidecar["prior"]["dense"]),
        "evaluations": 0,
        "tokens_scored": 0,
        "seconds": 0.0,
    }


def _unseen(run: Run, name: str, model: Any, prior: list[float]) -> dict[str, float]:
    """Score a model on the splits that no search sees, once for each fused model."""
    file = run.root / f"unseen-{name}-{read_manifest(run.folder('fuse')).key[:16]}.json"
    if file.is_file():
        kept: dict[str, float] = read_json(file)
        return kept
    accuracies = {}
    for split in ("test", "transfer"):
        examples = run.splits[split]
        exam = run.examiner.exam(examples, run.loaded.backend, run.loaded.ends)
        text_model = TorchTextModel(model, run.recipe.main_device)
        with run.progress.task(f"score {split}", len(examples), "prompts") as advance:
            answers = exam.take(text_model, run.recipe.search.batch_tokens, advance)
        accuracies[f"{split}_accuracy"] = exam.grade(answers, prior).score
    write_json(file, accuracies)
    return accuracies


if __name__ == "__main__":
    main()

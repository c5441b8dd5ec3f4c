"""What each step of the build is worth: ``python -m benchmarks.waterfall``.

For ONNX and for GGUF, from the file that the build started from to the smallest artifact: size, accuracy on the test
and transfer sets in the target's runtime with the prior fitted on the selection split there, and times of all steps in
turn in one process. The source is 4-bit already; every other step starts from its weights, dequantized. Runs lie in
``runs/``; an interrupted benchmark goes on.
"""

import copy
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import QUICK_UNIFORM, Demo, finish, load_demo, options, quick_task
from sieve_edge.artifacts import read_manifest, read_plan
from sieve_edge.config import Target
from sieve_edge.device.runtimes import WEIGHTS, Runtime, open_tokenizer, scoring_tokens
from sieve_edge.device.timing import time_models
from sieve_edge.export import export
from sieve_edge.files import digest, read_json, write_json
from sieve_edge.fuse import install_plan_
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.load import load_tokenizer, shared_copy
from sieve_edge.pipeline import build
from sieve_edge.progress import Progress
from sieve_edge.quantize import quantize
from sieve_edge.resolve import check_build, load_recipe, load_target, settings_json
from sieve_edge.run import Run
from sieve_edge.tune import Scorer, tune_model
from sieve_edge.vocabulary import smaller_vocabulary

QUICK_SETTINGS = (
    *QUICK_UNIFORM,
    "tune.epochs=0.2",
    "quantize.prompts=8",
)
SETTINGS = ("tune.method=lora", "tune.keep=always", "tune.compare_dense=false", "vocabulary.keep=auto")
TARGETS = {"onnx": "x86-cpu", "gguf": "x86-gguf"}
QUANTIZATIONS = {"onnx": ("int8", "int4"), "gguf": ("Q8_0", "Q4_0")}


@dataclass(frozen=True)
class Step:
    """One row: a model with its tokenizer, and how its weights are stored."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    quantization: str = "F32"


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    rows: list[dict[str, Any]] = []
    for format_ in TARGETS:
        rows += _format_rows(demo, format_, arguments)
        # Each format takes most of an hour; what is known is kept.
        finish("waterfall", demo, arguments, started, rows)


def _format_rows(demo: Demo, format_: str, arguments: Namespace) -> list[dict[str, Any]]:
    run = _run(demo, format_, arguments)
    build(run, "vocabulary")
    root = _root(run)
    folders = {}
    for step in _steps(run, format_):
        folders[step.name] = _exported(run, step, root / step.name.replace("+", "-"))
    runtime = Runtime(run.target.runtime, run.target.threads)
    rows = [_source_row(run, format_)]
    models = {}
    for name, folder in folders.items():
        rows.append({"step": name, "format": format_, "size_mib": _mib(folder), **_accuracies(run, folder, runtime)})
        models[name] = runtime.open(folder, 1024)
    text = run.splits["test"][0].prompt
    prompts = {name: open_tokenizer(folder).encode(text).ids for name, folder in folders.items()}
    repeats = 3 if arguments.quick else 20
    timings = time_models(models, prompts, 1, run.target.workload.decode_tokens, repeats, np.random.default_rng(0))
    for row in rows[1:]:
        timing = timings[row["step"]]
        row |= {
            "time_per_answer_ms": timing.time_per_answer_ms,
            "tokens_per_s": timing.tokens_per_s,
            "prompt_tokens_per_s": timing.prompt_tokens_per_s,
        }
    return rows


def _root(run: Run) -> Path:
    """Name the folder of exports and scores after everything they depend on."""
    keys = [read_manifest(run.folder(verb)).key for verb in ("learn", "search", "fuse", "tune", "vocabulary")]
    return run.root / f"waterfall-{digest([keys, settings_json(run.recipe), settings_json(run.target)])[:16]}"


def _run(demo: Demo, format_: str, arguments: Namespace) -> Run:
    target = load_target(TARGETS[format_]).model_copy(update={"quantization": "F32"})
    task = demo.task
    settings: tuple[str, ...] = (f"threads={arguments.threads}", *SETTINGS)
    if arguments.quick:
        task = quick_task(task)
        settings += QUICK_SETTINGS
    recipe = load_recipe(settings)
    check_build(target, recipe)
    root = Path("runs") / f"benchmark-waterfall{'-quick' if arguments.quick else ''}-{format_}"
    return Run(demo.loaded.source, task, target, recipe, root, Progress())


def _steps(run: Run, format_: str) -> Iterator[Step]:
    eight, four = QUANTIZATIONS[format_]
    whole = run.loaded.tokenizer

    def checkpoint(verb: str) -> tuple[Any, Any]:
        folder = run.folder(verb)
        return load_checkpoint(folder, "cpu"), load_tokenizer(folder)

    yield Step("dense", lambda: (run.loaded.model, whole))
    yield Step("dense+lora", lambda: (_tuned_dense(run), whole))
    yield Step("dense+8bit", lambda: (run.loaded.model, whole), eight)
    yield Step("dense+4bit", lambda: (run.loaded.model, whole), four)
    yield Step("dense+vocabulary+4bit", lambda: _dense_vocabulary(run), four)
    yield Step("pruned", lambda: (_unrefitted(run), whole))
    yield Step("refit", lambda: (load_checkpoint(run.folder("fuse"), "cpu"), whole))
    yield Step("tuned", lambda: (load_checkpoint(run.folder("tune"), "cpu"), whole))
    yield Step("vocabulary", lambda: checkpoint("vocabulary"))
    yield Step("8bit", lambda: checkpoint("vocabulary"), eight)
    yield Step("4bit", lambda: checkpoint("vocabulary"), four)


def _unrefitted(run: Run) -> Any:
    plan, model = read_plan(run.folder("search")), shared_copy(run.loaded.model)
    install_plan_(model, run.loaded.specs, ProjectionBank(run.folder("learn")), plan.ranks, plan.storage)
    return model


def _tuned_dense(run: Run) -> Any:
    """Train the dense model, or go on: both formats find the state of one training, whose last look is its end."""
    scorer = Scorer(run.loaded, run.examiner, run.splits, run.recipe, run.progress)
    model = copy.deepcopy(run.loaded.model)
    key = digest([run.source.sha256(), settings_json(run.recipe), settings_json(run.task)])
    work = run.root.parent / f"benchmark-waterfall-dense-{key[:16]}"
    return tune_model(model, run.loaded, run.splits, run.recipe, scorer, work, run.progress)[0]


def _dense_vocabulary(run: Run) -> tuple[Any, Any]:
    model = copy.deepcopy(run.loaded.model)
    smaller = smaller_vocabulary(run.loaded, run.task, run.splits, run.recipe)
    smaller.trim_(model)
    return model, smaller.tokenizer


def _exported(run: Run, step: Step, folder: Path) -> Path:
    """Export a step's model once."""
    if not (folder / "done").is_file():
        run.progress.say(f"exporting {step.name}")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "plan").mkdir(parents=True)
        model, tokenizer = step.make()
        target: Target = run.target.model_copy(update={"quantization": step.quantization})
        texts = [example.prompt for example in run.splits["calibration"][: run.recipe.quantize.prompts]]
        prompts = {"pruned": [tokenizer.backend_tokenizer.encode(text).ids for text in texts]}
        quantize({"pruned": model}, prompts, target, run.recipe.quantize, folder / "plan", run.progress)
        models, tokenizers = {"pruned": model}, {"pruned": tokenizer}
        export(models, tokenizers, texts[:2], step.name, folder / "plan", target, folder, lambda _: None)
        (folder / "done").touch()
    return folder / "pruned"


def _accuracies(run: Run, folder: Path, runtime: Runtime) -> dict[str, float]:
    """Score in the target's runtime; kept beside the folder, since it takes a minute and more."""
    file = folder.parent / "accuracies.json"
    if file.is_file():
        kept: dict[str, float] = read_json(file)
        return kept
    tokenizer, found = open_tokenizer(folder), {}
    prior: list[float] = []
    for split in ("selection", "test", "transfer"):
        exam = run.examiner.exam(run.splits[split], tokenizer, ())
        model = runtime.open(folder, scoring_tokens(exam.prompts, [[0]], run.recipe.search.batch_tokens))
        with run.progress.task(f"score {split}", len(exam.prompts), "prompts") as advance:
            answers = exam.take(model, run.recipe.search.batch_tokens, advance)
        if split == "selection":
            prior = exam.prior(answers)
        else:
            found[f"{split}_accuracy"] = exam.grade(answers, prior).score
    write_json(file, found)
    return found


def _source_row(run: Run, format_: str) -> dict[str, Any]:
    size: dict[str, Any] = {"step": "source (4-bit)", "format": format_, "size_mib": run.source.weight_bytes() / 2**20}
    figures = ("test_accuracy", "transfer_accuracy", "time_per_answer_ms", "tokens_per_s", "prompt_tokens_per_s")
    return size | dict.fromkeys(figures)


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob(WEIGHTS)) / 2**20


if __name__ == "__main__":
    main()

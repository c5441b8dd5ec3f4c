"""What each step of the build is worth: ``python -m benchmarks.waterfall``.

For ONNX and for GGUF, from the file that the build started from to the smallest artifact: size, accuracy on the test
and transfer sets in the target's runtime with the prior fitted on the selection split there, and times of all steps in
turn in one process. The source is 4-bit already, and llama.cpp runs it as it is; every other step starts from its
weights, dequantized. Runs lie in ``runs/``; an interrupted benchmark goes on.
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
from sieve_edge.device.llama import GGUF
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
from sieve_edge.run import Run, stage_settings
from sieve_edge.task.examples import splits_sha256
from sieve_edge.tune import Scorer, tune_model
from sieve_edge.vocabulary import smaller_vocabulary

SOURCE = "source"
QUICK_SETTINGS = (
    *QUICK_UNIFORM,
    "tune.epochs=0.2",
    "quantize.prompts=8",
)
SETTINGS = (
    "tune.method=lora",
    "tune.keep=always",
    "tune.compare_dense=false",
    "vocabulary.keep=auto",
    # Q4_K has blocks of 256, which do not fill rows of 576: llama.cpp stores those as Q5_0.
    "quantize.allow_fallback=true",
)
TARGETS = {"onnx": "x86-cpu", "gguf": "x86-gguf"}
# Fewer for GGUF, whose 4-bit mixture stores the embedding in 8 bits.
FIRST_TOKENS = {"onnx": 32768, "gguf": 22000}
QUANTIZATIONS = {"onnx": ("int8", "int4"), "gguf": ("Q8_0", "Q4_K_M")}
FIGURES = (
    "size_mib",
    "test_accuracy",
    "transfer_accuracy",
    "time_per_answer_ms",
    "tokens_per_s",
    "prompt_tokens_per_s",
)


@dataclass(frozen=True)
class Step:
    """One row: a model with its tokenizer, and how its weights are stored."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    quantization: str = "F32"
    rounding: str = "gptq"


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    rows = [row for format_ in TARGETS for row in _format_rows(demo, format_, arguments)]
    finish("waterfall", demo, arguments, started, rows)


def _format_rows(demo: Demo, format_: str, arguments: Namespace) -> list[dict[str, Any]]:
    """Measure the steps of one format, or read what an interrupted benchmark left."""
    run = _run(demo, format_, arguments)
    build(run, "vocabulary")
    root = _root(run)
    file = root / "rows.json"
    if not file.is_file():
        write_json(file, _measure(run, format_, root, 3 if arguments.quick else 20))
    rows: list[dict[str, Any]] = read_json(file)
    return rows


def _measure(run: Run, format_: str, root: Path, repeats: int) -> list[dict[str, Any]]:
    steps = {step.name: step for step in _steps(run, format_)}
    folders = {}
    for name, step in steps.items():
        folders[name] = _exported(run, step, root / name.replace("+", "-").replace(", ", "-"))
    if format_ == "gguf":
        folders = {SOURCE: _source_folder(run, folders["dense"], root / SOURCE), **folders}
    runtime = Runtime(run.target.runtime, run.target.threads)
    scores = {name: _accuracies(run, folder, runtime) for name, folder in folders.items()}
    models = {name: runtime.open(folder, 1024) for name, folder in folders.items()}
    text = run.splits["test"][0].prompt
    prompts = {name: open_tokenizer(folder).encode(text).ids for name, folder in folders.items()}
    timings = time_models(models, prompts, 1, run.target.workload.decode_tokens, repeats, np.random.default_rng(0))
    shipped = {"size_mib": run.source.weight_bytes() / 2**20}
    # ONNX Runtime cannot run the file that everything starts from.
    source: dict[str, Any] = {"weights": "4-bit, as shipped", **dict.fromkeys(FIGURES), **shipped, "fallbacks": []}
    rows: dict[str, dict[str, Any]] = {SOURCE: source}
    for name, folder in folders.items():
        timing = {figure: getattr(timings[name], figure) for figure in FIGURES[3:]}
        rows.setdefault(name, {"size_mib": _mib(folder)})
        rows[name] |= {**scores[name], **timing}
        if name in steps:
            rows[name] |= {"weights": steps[name].quantization, "fallbacks": _fallbacks(folder)}
    return [{"step": name, "format": format_, **row} for name, row in rows.items()]


def _source_folder(run: Run, dense: Path, folder: Path) -> Path:
    """Put the file that everything starts from, as it is, beside the tokenizer that the dense export has."""
    folder.mkdir(exist_ok=True)
    for name, target in ((GGUF, run.source.files()[0]), ("tokenizer.json", dense / "tokenizer.json")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.resolve())
    return folder


def _root(run: Run) -> Path:
    """Name the folder of exports and scores after everything they depend on."""
    keys = [read_manifest(run.folder(verb)).key for verb in ("learn", "search", "fuse", "tune", "vocabulary")]
    return run.root / f"waterfall-{digest([keys, settings_json(run.recipe), settings_json(run.target)])[:16]}"


def _run(demo: Demo, format_: str, arguments: Namespace) -> Run:
    # Pairs, since pivots are not for the weights of the last steps.
    target = load_target(TARGETS[format_]).model_copy(update={"quantization": "F32", "storage": "pair"})
    task = demo.task
    settings: tuple[str, ...] = (f"threads={arguments.threads}", *SETTINGS)
    settings += (f"vocabulary.first_tokens={FIRST_TOKENS[format_]}",)
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
    # That of fuse, where training never helped.
    yield Step("tuned", lambda: (load_checkpoint(run.checkpoint(("tune",)), "cpu"), whole))
    yield Step("vocabulary", lambda: checkpoint("vocabulary"))
    yield Step("8bit", lambda: checkpoint("vocabulary"), eight)
    if format_ == "onnx":
        yield Step("4bit, nearest", lambda: checkpoint("vocabulary"), four, "nearest")
    else:
        yield Step("4bit, Q4_0", lambda: checkpoint("vocabulary"), "Q4_0")
    yield Step("4bit", lambda: checkpoint("vocabulary"), four)


def _unrefitted(run: Run) -> Any:
    plan, model = read_plan(run.folder("search")), shared_copy(run.loaded.model)
    install_plan_(model, run.loaded.specs, ProjectionBank(run.folder("learn")), plan.ranks, plan.storage)
    return model


def _tuned_dense(run: Run) -> Any:
    """Train the dense model, or go on: both formats find the state of one training, whose last look is its end."""
    scorer = Scorer(run.loaded, run.examiner, run.splits, run.recipe, run.progress)
    model = copy.deepcopy(run.loaded.model)
    key = digest([run.source.sha256(), splits_sha256(run.splits), stage_settings("tune", run), run.recipe.seed])
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
        recipe = run.recipe.quantize.model_copy(update={"method": step.rounding})
        _, planned = quantize({"pruned": model}, prompts, target, recipe, folder / "plan", run.progress)
        models, tokenizers = {"pruned": model}, {"pruned": tokenizer}
        _, met = export(models, tokenizers, texts[:2], step.name, folder / "plan", target, folder, lambda _: None)
        write_json(folder / "done", [*planned, *met])
    return folder / "pruned"


def _fallbacks(folder: Path) -> list[str]:
    found: list[str] = read_json(folder.parent / "done")
    return found


def _accuracies(run: Run, folder: Path, runtime: Runtime) -> dict[str, float]:
    """Score in the target's runtime; kept beside the folder, since it takes a minute and more."""
    file = folder / "accuracies.json"
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


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob(WEIGHTS)) / 2**20


if __name__ == "__main__":
    main()

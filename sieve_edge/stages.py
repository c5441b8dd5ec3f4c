"""What each stage is given: the only place where stages, artifacts and settings meet.

Heavy imports stand inside the functions, so that looking at a finished run is quick.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sieve_edge.artifacts import read_manifest, read_plan
from sieve_edge.config import Target
from sieve_edge.files import digest
from sieve_edge.run import Run, gradient_levels, scoring_settings
from sieve_edge.task.exam import DENSE_ANSWERS
from sieve_edge.task.examiner import label_ids
from sieve_edge.task.examples import cut_fractions, splits_sha256

REFERENCE_PROMPTS = 2
SCORES_SCHEMA = 3
"""Rises when what a score means changes."""

Result = tuple[Mapping[str, Any], tuple[str, ...]]
"""``(metrics, fallbacks)`` of a stage."""


def _calibrate(run: Run, out: Path) -> Result:
    from sieve_edge.calibrate import calibrate
    from sieve_edge.task.examiner import check_lengths
    from sieve_edge.task.metrics import check_metric

    check_metric(run.task)
    check_lengths(run.task, run.splits, run.loaded.backend, run.loaded.positions)
    metrics = calibrate(
        run.loaded, run.examiner, run.splits["calibration"], run.splits["selection"], run.recipe, out, run.progress
    )
    cut = cut_fractions(run.splits)
    if any(cut.values()):
        told = ", ".join(f"{share:.0%} of {split}" for split, share in cut.items())
        run.progress.warn(f"  texts cut to max_words: {told}")
    return {**metrics, "cut": cut, **_judged(run)}, ()


def _learn(run: Run, out: Path) -> Result:
    from sieve_edge.learn import learn
    from sieve_edge.model.statistics import CalibrationStats

    stats = CalibrationStats(run.folder("calibrate"))
    ranks = gradient_levels(run)
    recipe = run.recipe
    return learn(run.loaded, stats, recipe.learn, ranks, recipe.seed, out, run.progress, recipe.devices), ()


def _search(run: Run, out: Path) -> Result:
    from sieve_edge.model.bank import ProjectionBank
    from sieve_edge.model.statistics import CalibrationStats
    from sieve_edge.search import search
    from sieve_edge.search.assemble import make_candidates, search_budgets, search_space
    from sieve_edge.search.budgets import shown
    from sieve_edge.search.executor import open_workers
    from sieve_edge.search.result import why_dense
    from sieve_edge.search.sizes import stored_sizes
    from sieve_edge.timed import table_of

    bank, stats = ProjectionBank(run.folder("learn")), CalibrationStats(run.folder("calibrate"))
    space = search_space(run.loaded, run.target, run.recipe)
    labels = label_ids(run.task, run.loaded.encode)
    answer_tokens = max((len(ids) for ids in labels), default=run.task.max_new_tokens)
    times = table_of(run, space, out) if run.recipe.search.limits_time else None
    budgets = search_budgets(space, run.recipe.search, stored_sizes(run.loaded, run.target), times, answer_tokens)
    for budget in budgets:
        run.progress.say(f"  {budget.told()}: the dense model has {shown(budget.dense(space))}")
    with open_workers(run.compute, run.recipe.threads) as workers:
        candidates = make_candidates(
            run.loaded,
            bank,
            stats,
            _dense_answers(run),
            run.examiner,
            run.target,
            run.splits,
            run.recipe,
            workers.executor,
            _score_cache(run),
            out,
            run.progress,
        )
        plan = search(space, bank, candidates, budgets, run.target, run.recipe, out, run.progress)
    told = ("kept_linears", "accuracy", "loss", "loss_bound", "accept", "refit", "evaluations", "tokens_scored")
    unpruned = all(rank is None for rank in plan.ranks.values())
    fallbacks = (f"{why_dense(candidates)}; the model stays dense",) if unpruned else ()
    costs = {budget.name: budget.cost(space.specs, plan.ranks) for budget in budgets}
    metrics = {**{name: getattr(plan, name) for name in told}, "costs": costs, **workers.metrics(), **_judged(run)}
    return metrics, (*fallbacks, *workers.fallbacks())


def _score_cache(run: Run) -> Path:
    """Name the scores that searches share: same model, bank, examples and arithmetic."""
    inputs = {verb: digest(read_manifest(run.folder(verb)).outputs) for verb in ("calibrate", "learn")}
    asked = run.recipe.search
    sizes = [asked.part, asked.refit_prompts, asked.guided.divergence_prompts, run.recipe.learn.gradient_weight]
    examples = splits_sha256(run.scored_splits)
    key = digest([SCORES_SCHEMA, run.source.sha256(), examples, inputs, scoring_settings(run), sizes])
    return run.root.parent / "shared" / f"scores-{key[:16]}.jsonl"


def _fuse(run: Run, out: Path) -> Result:
    from sieve_edge.fuse import fuse
    from sieve_edge.model.refit import refit_settings
    from sieve_edge.model.refitted import refitted_bank
    from sieve_edge.model.statistics import CalibrationStats
    from sieve_edge.search.assemble import refit_prompts

    recipe, plan = run.recipe, read_plan(run.folder("search"), run.plan)
    examples = run.splits["calibration"][: recipe.search.refit_prompts]
    prompts = [run.loaded.encode(example.prompt) for example in examples]
    exam = run.examiner.exam(examples[:1], run.loaded.backend, run.loaded.ends)
    settings = refit_settings(CalibrationStats(run.folder("calibrate")), run.loaded.specs, recipe.learn.gradient_weight)
    batches = refit_prompts(run.loaded, prompts, exam, run.task, recipe)
    bank = refitted_bank(run.loaded, run.folder("learn"), run.folder("search"), plan, *batches, settings)
    dense, selection = _dense_answers(run), run.splits["selection"]
    metrics, fallbacks = fuse(run.loaded, bank, plan, dense, run.examiner, selection, recipe, out, run.progress)
    return {**metrics, **_judged(run)}, fallbacks


def _tune(run: Run, out: Path) -> Result:
    if run.recipe.tune.method == "none":
        return {"method": "none", "kept": "untuned"}, ()
    from sieve_edge.model.checkpoint import load_checkpoint
    from sieve_edge.tune import tune

    checkpoint = run.folder("fuse")
    fused = load_checkpoint(checkpoint, run.recipe.main_device)
    told, fallbacks = tune(run.loaded, fused, checkpoint, run.examiner, run.splits, run.recipe, out, run.progress)
    return {**told, **_judged(run)}, fallbacks


def _vocabulary(run: Run, out: Path) -> Result:
    if run.recipe.vocabulary.keep == "all":
        return {"keep": "all"}, ()
    from sieve_edge.model.checkpoint import load_checkpoint
    from sieve_edge.vocabulary import trim_vocabulary

    checkpoint = run.checkpoint(("tune",))
    model = load_checkpoint(checkpoint, run.recipe.main_device)
    told = trim_vocabulary(run.loaded, model, checkpoint, run.examiner, run.splits, run.recipe, out, run.progress)
    return {**told, **_judged(run)}, ()


def _quantize(run: Run, out: Path) -> Result:
    from sieve_edge.model.checkpoint import load_checkpoint
    from sieve_edge.quantize import quantize

    if run.target.quantization == "F32":
        # Nothing to plan, so no model has to be loaded.
        return quantize({}, {}, run.target, run.recipe.quantize, out, run.progress)
    models = {"dense": run.loaded.model, "pruned": load_checkpoint(run.checkpoint(), run.recipe.main_device)}
    examples = run.splits["calibration"][: run.recipe.quantize.prompts]
    tokenizers = {"dense": run.loaded.tokenizer, "pruned": run.tokenizer}
    prompts = {
        kind: [tokenizer.backend_tokenizer.encode(example.prompt).ids for example in examples]
        for kind, tokenizer in tokenizers.items()
    }
    return quantize(models, prompts, run.target, run.recipe.quantize, out, run.progress)


def _export(run: Run, out: Path) -> Result:
    from sieve_edge.export import EXPORT_STEPS, export
    from sieve_edge.model.checkpoint import load_checkpoint
    from sieve_edge.model.load import on_cpu

    # One that was merged from an earlier export is not of this one.
    shutil.rmtree(run.root / "merged", ignore_errors=True)
    fused = load_checkpoint(run.checkpoint(), "cpu")
    prompts = [example.prompt for example in run.splits["selection"][:REFERENCE_PROMPTS]]
    with run.progress.task("export", EXPORT_STEPS, "steps") as advance:
        metrics, fallbacks = export(
            {"dense": on_cpu(run.loaded.model), "pruned": fused},
            {"dense": run.loaded.tokenizer, "pruned": run.tokenizer},
            prompts,
            run.source.name,
            run.folder("quantize"),
            run.target,
            out,
            advance,
        )
    for kind, types in metrics.get("types", {}).items():
        run.progress.say(f"  {kind}: {', '.join(f'{count} {name}' for name, count in types.items())} tensors")
    sidecar = run.checkpoint() / "sieve_edge.json"
    (out / "pruned" / "sieve_edge.json").write_bytes(sidecar.read_bytes())
    return metrics, (*fallbacks, *_other_build(run.target))


def _validate(run: Run, out: Path) -> Result:
    from sieve_edge.device.place import open_place
    from sieve_edge.validate import validate

    folders = {name: run.folder("export") / name for name in ("pruned", "dense")}
    examples = {name: run.splits[name] for name in ("test", "transfer")}
    source_mib = run.source.weight_bytes() / 2**20
    with open_place(run.target, run.root, folders, run.root.parent / "shared", run.progress) as place:
        result = validate(
            folders["pruned"],
            folders["dense"],
            examples,
            run.examiner,
            run.target,
            place,
            run.recipe.tolerance,
            run.recipe.seed,
            source_mib,
            out,
            run.progress,
        )
    metrics = {"passed": result["passed"], "validated_on": result["validated_on"], **_judged(run)}
    return metrics, (*place.stand_ins, *_other_build(run.target))


def _judged(run: Run) -> dict[str, Any]:
    return {} if run.judge is None else {"judge": run.judge.facts()}


def _other_build(target: Target) -> tuple[str, ...]:
    """Name the build of llama.cpp that stands in for the stock one."""
    if target.runtime != "llama.cpp-stock":
        return ()
    from sieve_edge.device.llama import runtime
    from sieve_edge.device.llama_refusals import PATCHED

    version = runtime().__version__
    told = f"measured in llama-cpp-python {version}, which has the patch that this file does not need"
    return (told,) if PATCHED in version else ()


STAGE_FUNCTIONS: dict[str, Callable[[Run, Path], Result]] = {
    "calibrate": _calibrate,
    "learn": _learn,
    "search": _search,
    "fuse": _fuse,
    "tune": _tune,
    "vocabulary": _vocabulary,
    "quantize": _quantize,
    "export": _export,
    "validate": _validate,
}


def _dense_answers(run: Run) -> list[Any]:
    answers: list[Any] = json.loads((run.folder("calibrate") / DENSE_ANSWERS).read_text(encoding="utf-8"))
    return answers

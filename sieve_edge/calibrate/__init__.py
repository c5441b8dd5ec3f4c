"""Stage: what the task's prompts and the model's own answers look like at every matrix.

Dimension key: B batch, T tokens, K labels, V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sieve_edge.calibrate.fishers import DONE, gather_fishers
from sieve_edge.calibrate.grams import gather_grams
from sieve_edge.calibrate.replicas import replicate, total
from sieve_edge.errors import CalibrationError, JudgeError, TaskError
from sieve_edge.files import write_json
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.statistics import load_moments, save_moments
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.task.evaluate import MAX_UNJUDGED, Grades, score_interval
from sieve_edge.task.exam import DENSE_ANSWERS, RAW
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example, count_by_source
from sieve_edge.task_config import Task


def calibrate(
    loaded: LoadedModel,
    examiner: Examiner,
    calibration: Sequence[Example],
    selection: Sequence[Example],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Score the dense model, then gather Gram and Fisher matrices.

    Reads the model and two splits; writes ``dense_answers.json`` and ``moments.safetensors`` to ``out``. May be
    interrupted: it goes on at the batch that was not finished. Costs one forward pass over ``calibration_tokens``,
    and one backward pass over ``fisher_prompts`` where the recipe wants the Fisher metric; batches of both are dealt
    out to the recipe's devices.

    Args:
        loaded: Dense model.
        examiner: Says what is asked.
        calibration: Examples whose prompts are run.
        selection: Examples that the dense model is scored on.
        recipe: Tokens, learning method, seed, devices.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        Metrics for the manifest.

    Raises:
        CalibrationError: If a sum is not finite.
    """
    task = examiner.task
    dense = _score_dense(loaded, examiner, selection, recipe, out, progress)
    prompts, tokens = _prompts(loaded, task, calibration, recipe)
    ended = examiner.exam(calibration[:1], loaded.backend, loaded.ends).ended
    state = out / "moments.safetensors"
    sums, done = load_moments(state)
    replicas = replicate(loaded, recipe.devices, sums)
    gather_grams(replicas, task, ended, prompts, recipe.learn, int(done.get("grams", 0)), state, progress)
    asked = 0
    if recipe.learn.output_metric == "fisher" and recipe.learn.method == "closed_form":
        asked = gather_fishers(replicas, examiner, calibration, recipe, int(done.get("fishers", 0)), state, progress)
    weights = "all 1" if asked == 0 else f"all 1; gradient energy, {asked} prompts"
    full = total(replicas).full()
    for name, value in full.items():
        if not bool(torch.isfinite(value).all()):
            raise CalibrationError(f"{name} is not finite after {tokens} tokens; the model overflows on these prompts")
    save_moments(state, full, {"grams": DONE, "fishers": DONE})
    sources = count_by_source(task, calibration[: len(prompts)])
    told = {"tokens": tokens, "sources": sources, "fisher_prompts": asked, "token_weights": weights}
    return {**told, "dense_selection": dense}


def _score_dense(
    loaded: LoadedModel, examiner: Examiner, selection: Sequence[Example], recipe: Recipe, out: Path, progress: Progress
) -> dict[str, Any]:
    task, file = examiner.task, out / DENSE_ANSWERS
    exam = examiner.exam(selection, loaded.backend, loaded.ends)
    if not file.is_file():
        model = TorchTextModel(loaded.model, recipe.main_device)
        with progress.task("score dense", len(selection), "prompts") as advance:
            write_json(file, exam.take(model, recipe.search.batch_tokens, advance))
    answers = json.loads(file.read_text(encoding="utf-8"))
    grades = exam.grade(answers)
    _refuse_silence(examiner, grades)
    low, high = score_interval(grades, np.random.default_rng(recipe.seed))
    name, baseline = examiner.baseline(exam, selection)
    if low <= baseline:
        raise TaskError(
            f"task {task.name}: the dense model's {task.metric} {grades.score:.3f} (95 % interval {low:.3f} to "
            f"{high:.3f}) is not above {baseline:.3f}, the score of {name}, so nothing could be proved on it; "
            "change the prompt, the labels or the model"
        )
    raw = exam.grade(answers, RAW).score
    return {"raw": raw, "corrected": grades.score, "interval95": [low, high], "baseline": baseline, "is": name}


def _refuse_silence(examiner: Examiner, grades: Grades) -> None:
    """Refuse a judge that says too little, since nothing could be compared with what it says."""
    if examiner.judge is None or grades.unjudged <= MAX_UNJUDGED:
        return
    facts = examiner.judge.facts()
    raise JudgeError(
        f"judge {facts['model']}: gave no verdict on {grades.unjudged:.0%} of the dense model's answers, at most "
        f"{MAX_UNJUDGED:.0%} may go without one ({facts['refused']} refused, {facts['unparsable']} unparsable, "
        f"{facts['cut_off']} of these cut off); raise judge.max_answer_tokens, or choose another judge"
    )


def _prompts(
    loaded: LoadedModel, task: Task, calibration: Sequence[Example], recipe: Recipe
) -> tuple[list[list[int]], int]:
    widest = max(min(spec.in_features, spec.out_features) for spec in loaded.specs)
    if recipe.calibration_tokens < widest:
        raise CalibrationError(
            f"calibration_tokens {recipe.calibration_tokens} is below {widest}, the width of the model's Gram "
            "matrices; raise it, for example --set calibration_tokens=20000"
        )
    prompts: list[list[int]] = []
    tokens = 0
    for example in calibration:
        if tokens >= recipe.calibration_tokens:
            break
        prompts.append(loaded.encode(example.prompt))
        tokens += len(prompts[-1]) + task.max_new_tokens
    if tokens < recipe.calibration_tokens:
        raise CalibrationError(
            f"the calibration split has {tokens} tokens, calibration_tokens asks for {recipe.calibration_tokens}; "
            "raise the task's splits.calibration or lower calibration_tokens"
        )
    return prompts, tokens

"""Stage 1: what the task's prompts and the model's own answers look like at every matrix.

Dimension key: B batch, T tokens, K labels, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sieve_edge.config import LearnRecipe, Recipe, Task
from sieve_edge.errors import CalibrationError, TaskError
from sieve_edge.files import disk_errors
from sieve_edge.model.flat import TorchTextModel, flat_forward
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.statistics import (
    FISHER_PROMPTS,
    FISHER_TOKENS,
    Moments,
    load_moments,
    narrow_side,
    save_moments,
)
from sieve_edge.model.watch import watch_fishers, watch_grams
from sieve_edge.progress import Progress
from sieve_edge.task.evaluate import accuracy_interval, balanced_accuracy, fit_prior, predict
from sieve_edge.task.examples import Example, label_ids
from sieve_edge.task.likelihood import label_log_likelihoods, length_batches, pad_left

GRAM_BATCH_TOKENS = 2048
FISHER_BATCH_TOKENS = 4096
FISHER_MICROBATCH_TOKENS = 512
_ALL = str(2**31)


def needed_sides(loaded: LoadedModel, learn: LearnRecipe) -> dict[str, tuple[str, ...]]:
    """Say which Gram matrices a recipe needs.

    Args:
        loaded: Dense model.
        learn: How projections will be found.

    Returns:
        Matrix name -> sides, ``"input"`` or ``"output"``.
    """
    if learn.method == "weight_svd":
        return {spec.name: () for spec in loaded.specs}
    if learn.method == "input_pca":
        return {spec.name: ("input",) for spec in loaded.specs}
    return {spec.name: (narrow_side(spec),) for spec in loaded.specs}


def calibrate(
    loaded: LoadedModel,
    task: Task,
    calibration: Sequence[Example],
    selection: Sequence[Example],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Score the dense model, then gather Gram and Fisher matrices.

    Reads the model and two splits; writes ``dense_scores.npy`` and ``moments.safetensors`` to ``out``. May be
    interrupted: it goes on at the batch that was not finished. Costs one forward pass over
    ``calibration_tokens``, and one backward pass over ``fisher_prompts`` where the recipe wants the Fisher metric.

    Args:
        loaded: Dense model.
        task: The task.
        calibration: Examples whose prompts are run.
        selection: Examples that the dense model is scored on.
        recipe: Tokens, learning method, seed.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        Metrics for the manifest.

    Raises:
        CalibrationError: If a sum is not finite.
    """
    dense = _score_dense(loaded, task, selection, recipe, out, progress)
    batches, tokens = _batches(loaded, task, calibration, recipe)
    state = out / "moments.safetensors"
    sums, done = load_moments(state)
    moments = Moments()
    moments.sums = sums
    _gather_grams(loaded, task, batches, recipe, moments, int(done.get("grams", 0)), state, progress)
    prompts = 0
    if recipe.learn.output_metric == "fisher" and recipe.learn.method == "closed_form":
        prompts = _gather_fishers(
            loaded, task, calibration, recipe, moments, int(done.get("fishers", 0)), state, progress
        )
    weights = "all 1" if prompts == 0 else f"all 1; gradient energy, {prompts} prompts"
    full = moments.full()
    for name, value in full.items():
        if not bool(torch.isfinite(value).all()):
            raise CalibrationError(f"{name} is not finite after {tokens} tokens; the model overflows on these prompts")
    save_moments(state, full, {"grams": _ALL, "fishers": _ALL})
    return {"tokens": tokens, "fisher_prompts": prompts, "token_weights": weights, "dense_selection": dense}


def _score_dense(
    loaded: LoadedModel, task: Task, selection: Sequence[Example], recipe: Recipe, out: Path, progress: Progress
) -> dict[str, Any]:
    file = out / "dense_scores.npy"
    if not file.is_file():
        prompts = [loaded.encode(example.prompt) for example in selection]
        model = TorchTextModel(loaded.model, recipe.device)
        with progress.task("score dense", len(prompts), "prompts") as advance:
            scores_NK = label_log_likelihoods(
                model, prompts, label_ids(task, loaded.encode), recipe.search.batch_tokens, advance
            )
        with disk_errors(file):
            np.save(file, scores_NK)
    scores_NK = np.load(file)
    labels_N = np.array([example.label for example in selection])
    classes = len(task.labels)
    predicted_N = predict(scores_NK, fit_prior(scores_NK, labels_N))
    accuracy = balanced_accuracy(predicted_N, labels_N, classes)
    low, high = accuracy_interval(predicted_N, labels_N, classes, np.random.default_rng(recipe.seed))
    if low <= 1.0 / classes:
        raise TaskError(
            f"task {task.name}: the dense model's balanced accuracy {accuracy:.3f} (95 % interval {low:.3f} to "
            f"{high:.3f}) is not above the majority baseline {1 / classes:.3f}, so nothing could be proved on it; "
            "change the prompt, the labels or the model"
        )
    raw = balanced_accuracy(predict(scores_NK), labels_N, classes)
    return {"raw": raw, "corrected": accuracy, "interval95": [low, high], "majority": 1.0 / classes}


def _batches(
    loaded: LoadedModel, task: Task, calibration: Sequence[Example], recipe: Recipe
) -> tuple[list[list[list[int]]], int]:
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
    rows = length_batches([len(prompt) for prompt in prompts], GRAM_BATCH_TOKENS)
    return [[prompts[row] for row in batch] for batch in rows], tokens


def _gather_grams(
    loaded: LoadedModel,
    task: Task,
    batches: list[list[list[int]]],
    recipe: Recipe,
    moments: Moments,
    start: int,
    state: Path,
    progress: Progress,
) -> None:
    sides = needed_sides(loaded, recipe.learn)
    if not any(sides.values()):
        return
    with progress.task("gather Gram matrices", sum(len(batch) for batch in batches), "prompts") as advance:
        for index, batch in enumerate(batches):
            if index >= start:
                run_with_answers(loaded, sides, moments, batch, task.max_new_tokens, recipe.device)
                save_moments(state, moments.sums, {"grams": str(index + 1)})
            advance(len(batch))


@torch.inference_mode()
def run_with_answers(
    loaded: LoadedModel,
    sides: Mapping[str, tuple[str, ...]],
    moments: Moments,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    device: str,
) -> None:
    """Run prompts and the model's own greedy answers, adding to the Gram matrices.

    Args:
        loaded: Dense model.
        sides: Matrix name -> sides wanted.
        moments: Where the sums go.
        prompts: Token ids of each prompt.
        new_tokens: Tokens of each answer; a row stops counting after its end token.
        device: Torch device.
    """
    ids_BT, mask_BT, positions_BT = (torch.from_numpy(array).to(device) for array in pad_left(prompts, 0))
    end = loaded.tokenizer.eos_token_id
    current = mask_BT.bool()
    with watch_grams(loaded.model, loaded.specs, sides, moments, lambda: current):
        logits_B1V, past = flat_forward(loaded.model, ids_BT, mask_BT, positions_BT, [], 1)
        alive_B1 = torch.ones_like(ids_BT[:, :1], dtype=torch.bool)
        for _ in range(new_tokens):
            ids_BT = logits_B1V[:, -1:].argmax(-1)
            if end is not None:
                alive_B1 = alive_B1 & (ids_BT != end)
            if not bool(alive_B1.any()):
                break
            current = alive_B1
            mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
            positions_BT = positions_BT[:, -1:] + 1
            logits_B1V, past = flat_forward(loaded.model, ids_BT, mask_BT, positions_BT, past, 1)


def _gather_fishers(
    loaded: LoadedModel,
    task: Task,
    calibration: Sequence[Example],
    recipe: Recipe,
    moments: Moments,
    start: int,
    state: Path,
    progress: Progress,
) -> int:
    answers = label_ids(task, loaded.encode)
    common = _common_tokens(answers)
    context = answers[0][:common]
    tokens_K = torch.tensor([answer[common] for answer in answers], device=recipe.device)
    prompts = [loaded.encode(example.prompt) + context for example in calibration[: recipe.learn.fisher_prompts]]
    batches = length_batches([len(prompt) for prompt in prompts], FISHER_BATCH_TOKENS)
    with progress.task("gather Fisher matrices", len(prompts), "prompts") as advance:
        for index, rows in enumerate(batches):
            if index >= start:
                generator = torch.Generator().manual_seed(recipe.seed * 100_003 + index)
                with watch_fishers(loaded.model, loaded.specs, moments):
                    for small in length_batches([len(prompts[row]) for row in rows], FISHER_MICROBATCH_TOKENS):
                        batch = [prompts[rows[row]] for row in small]
                        _answer_loss(loaded, batch, tokens_K, generator, recipe.device).backward()
                moments.add_scalar(FISHER_PROMPTS, torch.tensor(len(rows)))
                moments.add_scalar(FISHER_TOKENS, torch.tensor(sum(len(prompts[row]) for row in rows)))
                save_moments(state, moments.sums, {"grams": _ALL, "fishers": str(index + 1)})
            advance(len(rows))
    return len(prompts)


def _common_tokens(answers: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all labels begin with; what tells labels apart comes after them."""
    return next(index for index, column in enumerate(zip(*answers, strict=False)) if len(set(column)) > 1)


def _answer_loss(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens_K: Tensor, generator: torch.Generator, device: str
) -> Tensor:
    """Make the loss whose gradients' second moment is the Fisher matrix of the answer.

    One answer drawn from the model's own distribution, plus a contrast of the labels with random signs, so that
    what tells labels apart counts even where the model hardly ever says them.
    """
    ids_BT, mask_BT, positions_BT = (torch.from_numpy(array).to(device) for array in pad_left(prompts, 0))
    with torch.enable_grad():
        embedded = loaded.model.get_input_embeddings()(ids_BT).detach().requires_grad_(True)
        output = loaded.model(
            inputs_embeds=embedded, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False, logits_to_keep=1
        )
        log_BV = output.logits[:, -1].float().log_softmax(-1)
        drawn_B1 = torch.multinomial(log_BV.detach().exp().cpu(), 1, generator=generator).to(device)
        signs_BK = torch.randint(0, 2, (len(prompts), len(tokens_K)), generator=generator).to(device) * 2.0 - 1.0
        labels_BK = log_BV[:, tokens_K]
        contrast = (signs_BK * (labels_BK - labels_BK.mean(1, keepdim=True))).sum()
        loss: Tensor = contrast - log_BV.gather(1, drawn_B1).sum()
        return loss

"""Stage: the pruned model trained a little further on the task, at the same ranks; off by default."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sieve_edge.files import read_json, write_json
from sieve_edge.model.balance import balance_, restore_
from sieve_edge.model.checkpoint import read_layout, save_checkpoint
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import LoadedModel
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.task.evaluate import relative_loss
from sieve_edge.task.exam import LabelExam
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import TUNING, Example
from sieve_edge.tune.adapters import trainable
from sieve_edge.tune.arithmetic import settle
from sieve_edge.tune.batches import (
    Batch,
    answer_ending,
    answer_logits,
    answer_loss,
    distillation_loss,
    label_loss,
    mean_answer_loss,
    right_answers,
    step_batches,
)
from sieve_edge.tune.training import STATE, Schedule, train

KEPT = "tuned"
UNSEEN = ("test", "transfer")


def tune(
    loaded: LoadedModel,
    fused: Any,
    checkpoint: Path,
    examiner: Examiner,
    splits: Mapping[str, Sequence[Example]],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Train the factors on the task's examples, and keep them if they hold on examples of another source.

    Reads the checkpoint; writes one of the same shapes to ``out``, unless nothing is tuned. May be interrupted: it
    goes on from the last saved step. Costs passes forward and backward over the calibration split, of the dense
    model too where that is asked for, and one of the dense model over test and transfer.

    Args:
        loaded: Dense model.
        fused: Pruned model; changed in place.
        checkpoint: Its folder.
        examiner: Says what is asked.
        splits: Examples; ``calibration`` and ``TUNING`` to train on, ``selection`` to stop by, ``test`` and
            ``transfer`` to judge.
        recipe: Settings.
        out: Work folder.
        progress: Where progress is shown.

    Returns:
        ``(metrics for the manifest, fallbacks)``; ``kept`` says which factors the next stage takes.
    """
    wanted, sidecar = recipe.tune, read_json(checkpoint / "sieve_edge.json")
    scorer = Scorer(loaded, examiner, splits, recipe, progress)
    dense_scores, _ = scorer.scores(loaded.model, "dense", (sidecar["selection"]["dense"], sidecar["prior"]["dense"]))
    before, _ = scorer.scores(fused, "untuned")
    tuned, log = tune_model(fused, loaded, splits, recipe, scorer, out / "work", progress)
    after, prior = scorer.scores(tuned, "tuned")
    scores = {"dense": dense_scores, "untuned": before, "tuned": after}
    if wanted.compare_dense:
        progress.say("  the dense model, tuned on the answers in the same way, for a fair comparison")
        alike = wanted.model_copy(update={"loss": "answer", "dtype": log["dtype"]})
        on_answers, dense = recipe.model_copy(update={"tune": alike}), copy.deepcopy(loaded.model)
        tune_model(dense, loaded, splits, on_answers, scorer, out / "dense", progress)
        scores["dense_tuned"], _ = scorer.scores(dense, "tuned dense")
    lost = relative_loss(after["transfer"], before["transfer"])
    if lost > recipe.tolerance:
        progress.warn(f"  tuning loses {lost:.2%} on the transfer set, tolerance {recipe.tolerance:.2%}")
    kept = KEPT if keeps(before, after, log["best_step"], recipe.tolerance, wanted.keep) else "untuned"
    progress.say(f"  kept: the {kept} factors")
    if kept == KEPT:
        prompt = loaded.encode(splits["selection"][0].prompt)
        save_checkpoint(tuned, loaded.tokenizer, _layout(tuned, read_layout(checkpoint)), prompt, out)
        sidecar["prior"]["pruned"], sidecar["selection"]["pruned"] = prior, after["selection"]
        write_json(out / "sieve_edge.json", sidecar)
    # Last, so that an interrupted run has something to go on from.
    for work in ("work", "dense"):
        shutil.rmtree(out / work, ignore_errors=True)
    facts = {"method": wanted.method, "loss": wanted.loss, "dtype": log["dtype"], "training": log, "scores": scores}
    metrics = {**facts, "transfer_lost": lost, "transfer_holds": lost <= recipe.tolerance, "kept": kept}
    return metrics, tuple(log["fallbacks"]) if kept == KEPT else ()


def keeps(before: Mapping[str, float], after: Mapping[str, float], best_step: int, tolerance: float, keep: str) -> bool:
    """Decide whether tuned factors are kept.

    Args:
        before: Split -> accuracy of the untuned factors.
        after: The same of the tuned ones.
        best_step: Step of the best look; 0 where training never helped, so that nothing was tuned.
        tolerance: Relative loss that is allowed on the transfer set.
        keep: ``"auto"`` or ``"always"``.

    Returns:
        True if they are.
    """
    if best_step == 0:
        return False
    holds = relative_loss(after["transfer"], before["transfer"]) <= tolerance
    return keep == "always" or (holds and after["selection"] >= before["selection"])


def _layout(model: Any, layout: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Describe a tuned model's matrices: as before, but for pivots, which may be others now."""
    found: dict[str, Any] = {}
    for name, entry in layout.items():
        module = model.get_submodule(entry["paths"][0])
        factored = isinstance(module, FactoredLinear)
        now = {"storage": module.storage, "pivot_start": module.pivot_start} if factored else {}
        found[name] = {**entry, **now}
    return found


class Scorer:
    """Scores a model on the splits, with the prior fitted on the selection split.

    Attributes:
        ending: Token ids that follow a right answer in training.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        examiner: Examiner,
        splits: Mapping[str, Sequence[Example]],
        recipe: Recipe,
        progress: Progress,
    ) -> None:
        """Tokenize what is scored.

        Args:
            loaded: Dense model, whose tokenizer is used.
            examiner: Says what is asked.
            splits: Examples.
            recipe: Batch size, device.
            progress: Where progress is shown.
        """
        self._recipe = recipe
        self._progress = progress
        self._exams = {
            name: examiner.exam(splits[name], loaded.backend, loaded.ends) for name in ("selection", *UNSEEN)
        }
        self.ending = answer_ending(loaded, examiner.task)
        self._right = right_answers(loaded, splits["selection"], self.ending, recipe)

    def selection_loss(self, model: Any) -> float:
        """Score a model on the selection split, all of it: on a part of it the best look is chance.

        Args:
            model: transformers model.

        Returns:
            In nats: cross-entropy of the labels after prior correction, or of the right answers' tokens where answers
            are written.
        """
        exam = self._exams["selection"]
        if isinstance(exam, LabelExam):
            answers = exam.take(TorchTextModel(model, self._recipe.main_device), self._recipe.search.batch_tokens)
            return label_loss(np.asarray(answers), np.asarray(exam.labels))
        return mean_answer_loss(model, self._right)

    def scores(
        self, model: Any, name: str, known: tuple[float, list[float]] | None = None
    ) -> tuple[dict[str, float], list[float]]:
        """Score a model on every split.

        Args:
            model: transformers model.
            name: What to call it, for people.
            known: Its score and prior on the selection split, which is then not run.

        Returns:
            ``(split -> score, of labels after prior correction; the prior)``.
        """
        found: dict[str, float] = {}
        prior: list[float] = []
        if known is not None:
            found["selection"], prior = known
        text_model = TorchTextModel(model, self._recipe.main_device)
        for split in [split for split in self._exams if split not in found]:
            exam = self._exams[split]
            with self._progress.task(f"score {name}, {split}", len(exam.prompts), "prompts") as advance:
                answers = exam.take(text_model, self._recipe.search.batch_tokens, advance)
            if split == "selection":
                prior = exam.prior(answers)
            found[split] = exam.grade(answers, prior).score
        return found, prior


def tune_model(
    model: Any,
    loaded: LoadedModel,
    splits: Mapping[str, Sequence[Example]],
    recipe: Recipe,
    scorer: Scorer,
    work: Path,
    progress: Progress,
) -> tuple[Any, dict[str, Any]]:
    """Train a model that nobody else uses, in place.

    Args:
        model: transformers model.
        loaded: Dense model, to distil from; its tokenizer is used.
        splits: Examples; of them ``calibration`` and ``TUNING`` are used.
        recipe: Settings.
        scorer: Says when to stop.
        work: Folder of the state that an interrupted run goes on from.
        progress: Where progress is shown.

    Returns:
        ``(the model, adapters merged, how it went)``.
    """
    wanted, examples = recipe.tune, (*splits["calibration"], *splits.get(TUNING, ()))
    prefix, batches = right_answers(loaded, examples, scorer.ending, recipe)
    steps = step_batches([len(batch.ids_BT) for batch in batches], wanted.batch_examples, wanted.epochs, recipe.seed)
    work.mkdir(parents=True, exist_ok=True)
    dtype = settle(wanted.dtype, recipe.main_device, work)

    def loss_of(batch: Batch) -> Tensor:
        with torch.autocast(recipe.main_device.split(":")[0], torch.bfloat16, enabled=dtype == "bfloat16"):
            logits_BKV = answer_logits(model, prefix, batch)
        if wanted.loss == "answer":
            return answer_loss(logits_BKV, batch)
        with torch.no_grad():
            dense_BKV = answer_logits(loaded.model, prefix, batch)
        return distillation_loss(logits_BKV, dense_BKV, batch)

    def descend(step: int) -> float:
        chosen, total = [batches[index] for index in steps[step]], 0.0
        for batch in chosen:
            loss = loss_of(batch) * (len(batch.ids_BT) / sum(len(one.ids_BT) for one in chosen))
            loss.backward()
            total += float(loss.detach())
        return total

    storages = balance_(model)
    with trainable(model, wanted, recipe.seed) as (trained, finished):
        schedule = Schedule(len(steps), wanted.learning_rate, wanted.evaluate_every, wanted.patience)
        log = train(trained, descend, lambda: scorer.selection_loss(model), schedule, work / STATE, progress)
        finished()
    fallbacks = restore_(model.requires_grad_(False), storages)
    facts: dict[str, Any] = {"examples": len(examples), "steps": log.step, "best_step": log.best_step}
    facts |= {"looks": log.looks, "fallbacks": fallbacks, "dtype": dtype}
    return model, {**facts, "trained_params": sum(parameter.numel() for parameter in trained.values())}

"""Stage: the pruned model trained a little further on the task, at the same ranks; off by default."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sieve_edge.errors import EnvironmentMissing
from sieve_edge.files import read_json, write_json
from sieve_edge.model.checkpoint import read_layout, save_checkpoint
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import LoadedModel
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe, TuneRecipe
from sieve_edge.task.evaluate import relative_loss
from sieve_edge.task.exam import LabelExam
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example
from sieve_edge.tune.batches import (
    Batches,
    answer_logits,
    answer_loss,
    distillation_loss,
    label_loss,
    make_batches,
    mean_answer_loss,
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
) -> dict[str, Any]:
    """Train the factors on the calibration split, and keep them if they hold on examples of another source.

    Reads the checkpoint; writes one of the same shapes to ``out``, unless nothing is tuned. May be interrupted: it
    goes on from the last saved step. Costs passes forward and backward over the calibration split, of the dense
    model too where that is asked for.

    Args:
        loaded: Dense model.
        fused: Pruned model; changed in place.
        checkpoint: Its folder.
        examiner: Says what is asked.
        splits: Examples; ``calibration`` to train on, ``selection`` to stop by, ``test`` and ``transfer`` to judge.
        recipe: Settings.
        out: Work folder.
        progress: Where progress is shown.

    Returns:
        Metrics for the manifest; ``kept`` says which factors the next stage takes.
    """
    wanted = recipe.tune
    scorer = Scorer(loaded, examiner, splits, recipe, progress)
    before, _ = scorer.scores(fused, "untuned")
    tuned, log = tune_model(fused, loaded, splits, recipe, scorer, out / "work", progress)
    after, prior = scorer.scores(tuned, "tuned")
    scores = {"untuned": before, "tuned": after}
    if wanted.compare_dense:
        progress.say("  the dense model, tuned on the answers in the same way, for a fair comparison")
        dense = copy.deepcopy(loaded.model)
        on_answers = recipe.model_copy(update={"tune": wanted.model_copy(update={"loss": "answer"})})
        tune_model(dense, loaded, splits, on_answers, scorer, out / "dense", progress)
        scores["dense_tuned"], _ = scorer.scores(dense, "tuned dense")
    lost = relative_loss(after["transfer"], before["transfer"])
    if lost > recipe.tolerance:
        progress.warn(f"  tuning loses {lost:.2%} on the transfer set, tolerance {recipe.tolerance:.2%}")
    kept = KEPT if keeps(before, after, log["best_step"], recipe.tolerance, wanted.keep) else "untuned"
    progress.say(f"  kept: the {kept} factors")
    if kept == KEPT:
        prompt = loaded.encode(splits["selection"][0].prompt)
        save_checkpoint(tuned, loaded.tokenizer, read_layout(checkpoint), prompt, out)
        sidecar = read_json(checkpoint / "sieve_edge.json")
        sidecar["prior"]["pruned"] = prior
        sidecar["selection"]["pruned"] = after["selection"]
        write_json(out / "sieve_edge.json", sidecar)
    # Last, so that an interrupted run has something to go on from.
    for work in ("work", "dense"):
        shutil.rmtree(out / work, ignore_errors=True)
    facts = {"method": wanted.method, "loss": wanted.loss, "training": log, "scores": scores}
    return {**facts, "transfer_lost": lost, "transfer_holds": lost <= recipe.tolerance, "kept": kept}


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


class Scorer:
    """Scores a model on the splits, with the prior fitted on the selection split."""

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
        self._right = right_answers(loaded, splits["selection"][: recipe.search.part], recipe)

    def selection_loss(self, model: Any) -> float:
        """Score a model quickly, on the first part of the selection split.

        Args:
            model: transformers model.

        Returns:
            In nats: cross-entropy of the labels after prior correction, or of the right answers' tokens where answers
            are written.
        """
        exam = self._exams["selection"].part(0, self._recipe.search.part)
        if isinstance(exam, LabelExam):
            answers = exam.take(TorchTextModel(model, self._recipe.device), self._recipe.search.batch_tokens)
            return label_loss(np.asarray(answers), np.asarray(exam.labels))
        return mean_answer_loss(model, self._right)

    def scores(self, model: Any, name: str) -> tuple[dict[str, float], list[float]]:
        """Score a model on every split.

        Args:
            model: transformers model.
            name: What to call it, for people.

        Returns:
            ``(split -> score, of labels after prior correction; the prior)``.
        """
        found, prior = {}, []
        text_model = TorchTextModel(model, self._recipe.device)
        for split, exam in self._exams.items():
            with self._progress.task(f"score {name}, {split}", len(exam.prompts), "prompts") as advance:
                answers = exam.take(text_model, self._recipe.search.batch_tokens, advance)
            if split == "selection":
                prior = exam.prior(answers)
            found[split] = exam.grade(answers, prior).score
        return found, prior


def right_answers(loaded: LoadedModel, examples: Sequence[Example], recipe: Recipe) -> Batches:
    """Put prompts with their right answers into batches.

    Args:
        loaded: Dense model, whose tokenizer is used.
        examples: Examples.
        recipe: Tokens of a batch, device.

    Returns:
        The batches.
    """
    return make_batches(
        [loaded.encode(example.prompt) for example in examples],
        [loaded.encode(example.answer, special=False) for example in examples],
        recipe.tune.batch_tokens,
        recipe.device,
    )


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
        splits: Examples; of them ``calibration`` is used.
        recipe: Settings.
        scorer: Says when to stop.
        work: Folder of the state that an interrupted run goes on from.
        progress: Where progress is shown.

    Returns:
        ``(the model, adapters merged, how it went)``.
    """
    wanted, batched = recipe.tune, right_answers(loaded, splits["calibration"], recipe)
    prefix, batches = batched.prefix, batched.batches
    steps = max(round(wanted.epochs * len(batches)), 1)
    work.mkdir(parents=True, exist_ok=True)

    def loss_of(step: int) -> Tensor:
        epoch, place = divmod(step, len(batches))
        batch = batches[np.random.default_rng([recipe.seed, epoch]).permutation(len(batches))[place]]
        with torch.autocast(recipe.device.split(":")[0], torch.bfloat16, enabled=wanted.dtype == "bfloat16"):
            logits_BKV = answer_logits(model, prefix, batch)
        if wanted.loss == "answer":
            return answer_loss(logits_BKV, batch)
        with torch.no_grad():
            dense_BKV = answer_logits(loaded.model, prefix, batch)
        return distillation_loss(logits_BKV, dense_BKV, batch)

    with _trainable(model, wanted, recipe.seed) as (trained, finished):
        schedule = Schedule(steps, wanted.learning_rate, wanted.evaluate_every, wanted.patience)
        log = train(trained, loss_of, lambda: scorer.selection_loss(model), schedule, work / STATE, progress)
        finished()
    model.requires_grad_(False)
    facts = {"steps": log.step, "best_step": log.best_step, "looks": log.looks, "batches": len(batches)}
    return model, {**facts, "trained_params": sum(parameter.numel() for parameter in trained.values())}


@contextmanager
def _trainable(
    model: Any, recipe: TuneRecipe, seed: int
) -> Iterator[tuple[dict[str, nn.Parameter], Callable[[], None]]]:
    """Choose what is trained; the function that is given too merges adapters into the weights."""
    model.requires_grad_(False)
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embeddings
    }
    if recipe.method == "full_factors":
        for module in linears.values():
            module.weight.requires_grad_(True)
        yield _required(model), lambda: None
        return
    peft = import_peft()
    config = peft.LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(linears))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, config)
    yield _required(model), adapted.merge_and_unload


def _required(model: Any) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def import_peft() -> Any:
    """Import peft, which only LoRA needs.

    Returns:
        The module.

    Raises:
        EnvironmentMissing: If it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise EnvironmentMissing(f"peft cannot be imported ({error}); run: pip install 'sieve-edge[tune]'") from error
    return peft

"""The backward pass of calibrate: Fisher matrices of the answer's loss.

Dimension key: B batch, T tokens, K labels, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sieve_edge.calibrate.replicas import Replica, deal, replica_sums
from sieve_edge.model.flat import TorchTextModel, cache_of, run_prefix
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.statistics import FISHER_PROMPTS, FISHER_TOKENS, Checkpoint
from sieve_edge.model.watch import watch_fishers
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.task.divergence import Answered, with_answers
from sieve_edge.task.exam import LabelExam
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example
from sieve_edge.task.likelihood import length_batches, pad_left, shared_prefix

FISHER_BATCH_TOKENS = 4096
FISHER_MICROBATCH_TOKENS = 512
_WHOLE_EVERY = 8
"""One prompt of so many is run with the prefix that all share, the others after it."""

DONE = str(2**31)
"""Batch number of a pass that is finished."""


def gather_fishers(
    replicas: Sequence[Replica],
    examiner: Examiner,
    calibration: Sequence[Example],
    recipe: Recipe,
    start: int,
    state: Path,
    progress: Progress,
) -> int:
    """Take the answer's loss back through the model, adding to the Fisher matrices.

    Args:
        replicas: Dense model on every device, and where the sums go.
        examiner: Says what is asked.
        calibration: Examples; the first ``fisher_prompts`` are run.
        recipe: Prompts, seed.
        start: Batches that are done already.
        state: File that the sums are kept in.
        progress: Where progress is shown.

    Returns:
        Prompts that were run.
    """
    answered, labels = _answered(replicas[0], examiner, calibration[: recipe.learn.fisher_prompts], recipe)
    prompts = [list(item.ids) for item in answered]
    # Positions that predict the answer are run in every batch.
    shared = shared_prefix([item.ids[: len(item.ids) - item.answer_tokens + 1] for item in answered])
    with torch.no_grad():
        pasts = {each.device: run_prefix(each.loaded.model, prompts[0][:shared], each.device) for each in replicas}
    batches = _batches([len(prompt) for prompt in prompts], shared)
    sizes = [sum(len(prompts[row]) for row in rows) for _, rows in batches]
    # What the prefix adds is gathered on the whole prompts alone, and stands for all.
    weight = len(prompts) / sum(len(rows) for skipped, rows in batches if skipped == 0)

    def run(index: int, on: Replica) -> None:
        skipped, rows = batches[index]
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + index)
        tails = [Answered(item.ids[skipped:], item.answer_tokens) for item in (answered[row] for row in rows)]
        tokens_K = torch.tensor(labels, dtype=torch.int64, device=on.device)
        for batch in _microbatches(on.loaded, tails, skipped):
            weights_BT = _weights([item.ids for item in batch], 0 if skipped else shared, 1.0 if skipped else weight)
            with watch_fishers(on.loaded.model, on.loaded.specs, on.moments, weights_BT.to(on.device)):
                past = pasts[on.device] if skipped else []
                _answer_loss(on.loaded, batch, past, tokens_K, generator, on.device).backward()
        on.moments.add_scalar(FISHER_PROMPTS, torch.tensor(len(rows)))
        on.moments.add_scalar(FISHER_TOKENS, torch.tensor(sizes[index]))

    checkpoint = Checkpoint(state)
    with progress.task("gather Fisher matrices", sum(sizes), "tokens") as advance:
        advance(sum(sizes[:start]))
        for done in deal(run, start, len(batches), replicas):
            checkpoint.offer(replica_sums(replicas), {"grams": DONE, "fishers": str(done.stop)})
            advance(sum(sizes[done.start : done.stop]))
    return len(prompts)


def _answered(
    on: Replica, examiner: Examiner, examples: Sequence[Example], recipe: Recipe
) -> tuple[list[Answered], list[int]]:
    """Find the positions whose loss counts: where labels differ, or all of the model's own answer."""
    exam = examiner.exam(examples, on.loaded.backend, on.loaded.ends)
    if isinstance(exam, LabelExam):
        common = _common_tokens(exam.answer_ids)
        prompts = [(*prompt, *exam.answer_ids[0][:common]) for prompt in exam.prompts]
        return [Answered(prompt, 1) for prompt in prompts], [answer[common] for answer in exam.answer_ids]
    model, new_tokens = TorchTextModel(on.loaded.model, on.device), examiner.task.max_new_tokens
    return with_answers(model, exam.prompts, new_tokens, exam.ended, recipe.search.batch_tokens), []


def _batches(lengths: Sequence[int], shared: int) -> list[tuple[int, list[int]]]:
    """Group prompts, a part of them whole and the others after their prefix: tokens skipped and rows of each batch."""
    every = _WHOLE_EVERY if shared else 1
    whole = list(range(0, len(lengths), every))
    others = [row for row in range(len(lengths)) if row % every]
    groups = [(0, whole), (shared, others)] if others else [(0, whole)]
    return [
        (skipped, [rows[index] for index in batch])
        for skipped, rows in groups
        for batch in length_batches([lengths[row] - skipped for row in rows], FISHER_BATCH_TOKENS)
    ]


def _microbatches(loaded: LoadedModel, tails: Sequence[Answered], skipped: int) -> list[list[Answered]]:
    # Padding between a cached prefix and a prompt would count as distance in a sliding window.
    mixed = not skipped or getattr(loaded.model.config, "sliding_window", None) is None
    groups = length_batches([len(tail.ids) for tail in tails], FISHER_MICROBATCH_TOKENS, mixed=mixed)
    return [[tails[row] for row in rows] for rows in groups]


def _weights(batch: Sequence[Sequence[int]], prefix: int, weight: float) -> Tensor:
    """Say how often each token counts: those of the prefix ``weight`` times, the others once."""
    width = max(len(row) for row in batch)
    weights_BT = torch.ones(len(batch), width)
    for index, row in enumerate(batch):
        start = width - len(row)
        weights_BT[index, start : start + prefix] = weight
    return weights_BT


def _common_tokens(answers: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all labels begin with; what tells labels apart comes after them."""
    return next(index for index, column in enumerate(zip(*answers, strict=False)) if len(set(column)) > 1)


def _answer_loss(
    loaded: LoadedModel,
    answered: Sequence[Answered],
    past: Sequence[Tensor],
    tokens_K: Tensor,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    """Make the loss whose gradients' second moment is the Fisher matrix of the answer.

    One token drawn from the model's own distribution at each position of its answer, plus a contrast of the labels,
    if there are any, with random signs, so that what tells labels apart counts even where the model hardly ever says
    them.
    """
    seen, rows = past[0].shape[2] if past else 0, len(answered)
    prompts = [item.ids for item in answered]
    ids_BT, mask_BT, positions_BT = (torch.from_numpy(array).to(device) for array in pad_left(prompts, seen))
    present = [tensor.expand(rows, *tensor.shape[1:]) for tensor in past]
    longest = max(item.answer_tokens for item in answered)
    counts_B1 = torch.tensor([[item.answer_tokens] for item in answered], device=device)
    real_BA = torch.arange(longest, 0, -1, device=device) <= counts_B1
    with torch.enable_grad():
        embedded = loaded.model.get_input_embeddings()(ids_BT).detach().requires_grad_(True)
        output = loaded.model(
            inputs_embeds=embedded,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache_of(present),
            use_cache=True,
            logits_to_keep=longest,
        )
        log_BAV = output.logits.float().log_softmax(-1)
        drawn_N1 = torch.multinomial(log_BAV.detach().flatten(0, 1).exp().cpu(), 1, generator=generator).to(device)
        loss: Tensor = -(log_BAV.gather(2, drawn_N1.view(rows, longest, 1))[..., 0] * real_BA).sum()
        if len(tokens_K):
            signs_BK = torch.randint(0, 2, (rows, len(tokens_K)), generator=generator).to(device) * 2.0 - 1.0
            labels_BK = log_BAV[:, -1, tokens_K]
            loss = (signs_BK * (labels_BK - labels_BK.mean(1, keepdim=True))).sum() + loss
        return loss

"""The backward pass of calibrate: Fisher matrices of the answer's loss.

Dimension key: B batch, T tokens, K labels, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sieve_edge.config import Recipe, Task
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.statistics import FISHER_PROMPTS, FISHER_TOKENS, Checkpoint, Moments
from sieve_edge.model.watch import watch_fishers
from sieve_edge.progress import Progress
from sieve_edge.task.examples import Example, label_ids
from sieve_edge.task.likelihood import length_batches, pad_left

FISHER_BATCH_TOKENS = 4096
FISHER_MICROBATCH_TOKENS = 512
DONE = str(2**31)
"""Batch number of a pass that is finished."""


def gather_fishers(
    loaded: LoadedModel,
    task: Task,
    calibration: Sequence[Example],
    recipe: Recipe,
    moments: Moments,
    start: int,
    state: Path,
    progress: Progress,
) -> int:
    """Take the answer's loss back through the model, adding to the Fisher matrices.

    Args:
        loaded: Dense model.
        task: The task.
        calibration: Examples; the first ``fisher_prompts`` are run.
        recipe: Prompts, seed, device.
        moments: Where the sums go.
        start: Batches that are done already.
        state: File that the sums are kept in.
        progress: Where progress is shown.

    Returns:
        Prompts that were run.
    """
    answers = label_ids(task, loaded.encode)
    common = _common_tokens(answers)
    context = answers[0][:common]
    tokens_K = torch.tensor([answer[common] for answer in answers], device=recipe.device)
    prompts = [loaded.encode(example.prompt) + context for example in calibration[: recipe.learn.fisher_prompts]]
    batches = length_batches([len(prompt) for prompt in prompts], FISHER_BATCH_TOKENS)
    checkpoint = Checkpoint(state)
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
                checkpoint.offer(moments.sums, {"grams": DONE, "fishers": str(index + 1)})
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

"""The forward pass of calibrate: Gram matrices of prompts and the dense model's own answers.

Dimension key: B batch, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sieve_edge.calibrate.replicas import Replica, deal, replica_sums
from sieve_edge.model.flat import flat_forward, run_prefix
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.statistics import Checkpoint, Moments, narrow_side
from sieve_edge.model.watch import watch_grams
from sieve_edge.progress import Progress
from sieve_edge.recipe import LearnRecipe
from sieve_edge.task.generate import Ended
from sieve_edge.task.likelihood import pad_left, prefix_and_tails
from sieve_edge.task_config import Task

GRAM_BATCH_TOKENS = 2048


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


def gather_grams(
    replicas: Sequence[Replica],
    task: Task,
    ended: Ended,
    prompts: Sequence[list[int]],
    recipe: LearnRecipe,
    start: int,
    state: Path,
    progress: Progress,
) -> None:
    """Run the prompts and the model's own answers, adding to the Gram matrices.

    Args:
        replicas: Dense model on every device, and where the sums go.
        task: The task.
        ended: Whether an answer is complete.
        prompts: Token ids of each prompt.
        recipe: Learning method.
        start: Batches that are done already.
        state: File that the sums are kept in.
        progress: Where progress is shown.
    """
    sides = needed_sides(replicas[0].loaded, recipe)
    if not any(sides.values()):
        return
    prefix, batches = prefix_and_tails(prompts, GRAM_BATCH_TOKENS)
    sizes = [sum(len(prefix) + len(tail) for tail in batch) for batch in batches]
    # Counted once, by the first; a pass that goes on has counted the prefix already.
    counts = [len(prompts) if start == 0 and each is replicas[0] else 0 for each in replicas]
    pasts = {
        each.device: gather_prefix(each.loaded, sides, each.moments, prefix, count, each.device)
        for each, count in zip(replicas, counts, strict=True)
    }

    def run(index: int, on: Replica) -> None:
        past, tails = pasts[on.device], batches[index]
        run_with_answers(on.loaded, sides, on.moments, past, tails, task.max_new_tokens, ended, on.device)

    checkpoint = Checkpoint(state)
    with progress.task("gather Gram matrices", sum(sizes), "tokens") as advance:
        advance(sum(sizes[:start]))
        for done in deal(run, start, len(batches), replicas):
            checkpoint.offer(replica_sums(replicas), {"grams": str(done.stop)})
            advance(sum(sizes[done.start : done.stop]))


@torch.inference_mode()
def gather_prefix(
    loaded: LoadedModel,
    sides: Mapping[str, tuple[str, ...]],
    moments: Moments,
    prefix: Sequence[int],
    count: int,
    device: str,
) -> list[Tensor]:
    """Run the tokens that all prompts begin with, once for all of them.

    Args:
        loaded: Dense model.
        sides: Matrix name -> sides wanted.
        moments: Where the sums go; these tokens count as often as there are prompts.
        prefix: Token ids; empty for none.
        count: How many prompts there are; 0 to add nothing.
        device: Torch device.

    Returns:
        Keys and values of the prefix, empty without one.
    """
    if not prefix:
        return []
    real_1T = torch.ones(1, len(prefix), dtype=torch.bool, device=device)
    with watch_grams(loaded.model, loaded.specs, sides, moments, lambda: real_1T, count):
        return run_prefix(loaded.model, prefix, device)


@torch.inference_mode()
def run_with_answers(
    loaded: LoadedModel,
    sides: Mapping[str, tuple[str, ...]],
    moments: Moments,
    past: Sequence[Tensor],
    tails: Sequence[Sequence[int]],
    new_tokens: int,
    ended: Ended,
    device: str,
) -> None:
    """Run prompts of one length and the model's own greedy answers, adding to the Gram matrices.

    Args:
        loaded: Dense model.
        sides: Matrix name -> sides wanted.
        moments: Where the sums go.
        past: Keys and values of the prefix that all prompts share.
        tails: Token ids of each prompt after the prefix.
        new_tokens: Tokens of each answer; a row stops counting with the token that ends its answer.
        ended: Whether an answer is complete.
        device: Torch device.
    """
    seen = past[0].shape[2] if past else 0
    ids_BT, mask_BT, positions_BT = (torch.from_numpy(array).to(device) for array in pad_left(tails, seen))
    present = [tensor.expand(len(tails), *tensor.shape[1:]) for tensor in past]
    answers: list[list[int]] = [[] for _ in tails]
    current = torch.ones_like(ids_BT, dtype=torch.bool)
    with watch_grams(loaded.model, loaded.specs, sides, moments, lambda: current):
        logits_B1V, present = flat_forward(loaded.model, ids_BT, mask_BT, positions_BT, present, 1)
        alive_B1 = torch.ones_like(ids_BT[:, :1], dtype=torch.bool)
        for _ in range(new_tokens):
            ids_BT = logits_B1V[:, -1:].argmax(-1)
            for row, token in enumerate(ids_BT[:, 0].tolist()):
                answers[row].append(token)
                alive_B1[row, 0] &= not ended(answers[row])
            if not bool(alive_B1.any()):
                break
            current = alive_B1
            mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
            positions_BT = positions_BT[:, -1:] + 1
            logits_B1V, present = flat_forward(loaded.model, ids_BT, mask_BT, positions_BT, present, 1)

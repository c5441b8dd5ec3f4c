"""The prompts that are timed."""

from collections.abc import Mapping, Sequence

import numpy as np


def workload_prompt(prompts: Sequence[Sequence[int]], tokens: int | None) -> list[int]:
    """Make the prompt that is timed, from the task's own prompts.

    Args:
        prompts: Token lists.
        tokens: Wanted length; None for the median of ``prompts``.

    Returns:
        The prompt nearest to that length, cut or repeated to it.
    """
    wanted = tokens or int(np.median([len(prompt) for prompt in prompts]))
    nearest = min(prompts, key=lambda prompt: abs(len(prompt) - wanted))
    ids: list[int] = np.resize(np.asarray(nearest), wanted).tolist()
    return ids


def timed_prompts(prompts: Mapping[str, Sequence[list[int]]], tokens: int | None) -> dict[str, list[int]]:
    """Give both models the same text, in as many tokens as it takes each.

    Args:
        prompts: Token lists of ``dense`` and ``pruned``.
        tokens: Wanted length in the dense model's tokens; None for the median of its prompts.

    Returns:
        The prompt of each.
    """
    dense = workload_prompt(prompts["dense"], tokens)
    if prompts["pruned"] == prompts["dense"]:
        return {"dense": dense, "pruned": dense}
    # Of a text that is cut or repeated, the other tokenizer's share is that of the whole split.
    share = sum(map(len, prompts["pruned"])) / sum(map(len, prompts["dense"]))
    return {"dense": dense, "pruned": workload_prompt(prompts["pruned"], round(len(dense) * share))}

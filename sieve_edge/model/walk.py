"""Runs a model layer by layer over many prompts, so that a layer can be changed before the next one is run.

Dimension key: B batch, T tokens, D hidden features.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sieve_edge.model.flat import flat_forward
from sieve_edge.model.matrices import decoder_layers


@dataclass(frozen=True)
class WalkBatch:
    """Prompts of one length, or the prefix that all share.

    Attributes:
        arguments: Keyword arguments that each layer is called with; they do not depend on weights.
        hidden_BTD: Input of the first layer.
        count: How often these tokens count; the shared prefix stands for all prompts.
        ends: Whether the rows end where a prompt ends.
    """

    arguments: tuple[dict[str, Any], ...]
    hidden_BTD: Tensor
    count: int
    ends: bool


class _Reached(Exception):
    """The input that was asked for is there; the rest of the layer need not run."""


@torch.inference_mode()
def start_walk(model: Any, prefix: Sequence[int], tails: Sequence[Sequence[Sequence[int]]]) -> list[WalkBatch]:
    """Find out how a model calls its layers.

    Args:
        model: transformers model.
        prefix: Tokens that all prompts share; empty for none.
        tails: Batches of the prompts' other tokens; those of a batch have one length.

    Returns:
        The prefix, where there is one, and the batches.
    """
    layers = decoder_layers(model)
    prompts = sum(len(rows) for rows in tails)
    past: list[Tensor] = []
    if prefix:
        _, past = flat_forward(model, *_inputs([prefix], 0, model.device), [], 1)
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    # Some families pass arguments by place.
    signature = inspect.signature(type(layers[0]).forward)

    def record(hidden_BTD: Tensor, *places: Any, **names: Any) -> Tensor:
        bound = signature.bind(None, hidden_BTD, *places, **names).arguments
        others = bound.pop("kwargs", {})
        arguments = {**bound, **others}
        calls.append((hidden_BTD, {name: arguments[name] for name in list(arguments)[2:] if name != "past_key_values"}))
        return hidden_BTD

    batches: list[WalkBatch] = []
    for layer in layers:
        layer.forward = record
    try:
        for rows in [[prefix], *tails] if prefix else tails:
            is_prefix = bool(prefix) and not batches
            seen = 0 if is_prefix else len(prefix)
            repeated = [] if is_prefix else [tensor.expand(len(rows), *tensor.shape[1:]) for tensor in past]
            calls.clear()
            flat_forward(model, *_inputs(rows, seen, model.device), repeated, 1)
            arguments = tuple(call[1] for call in calls)
            batches.append(WalkBatch(arguments, calls[0][0], prompts if is_prefix else 1, not is_prefix))
    finally:
        for layer in layers:
            del layer.forward
    return batches


@torch.inference_mode()
def run_layer(
    layer: nn.Module, index: int, batches: Sequence[WalkBatch], hidden: Sequence[Tensor], until: nn.Module | None = None
) -> list[Tensor]:
    """Run one layer over all batches.

    Args:
        layer: The layer.
        index: Its index.
        batches: How it is called.
        hidden: Its input in each batch, (B, T, D).
        until: Module inside the layer to stop at; None runs all of it.

    Returns:
        For each batch the layer's output, or the input of ``until``.
    """
    reached: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        reached.append(args[0])
        raise _Reached

    handle = None if until is None else until.register_forward_pre_hook(stop)
    prefix: tuple[Tensor, Tensor] | None = None
    outputs: list[Tensor] = []
    try:
        for batch, hidden_BTD in zip(batches, hidden, strict=True):
            cache = DynamicCache()
            if batch.ends and prefix is not None:
                keys, values = (tensor.expand(len(hidden_BTD), *tensor.shape[1:]) for tensor in prefix)
                cache.update(keys, values, index)
            try:
                outputs.append(layer(hidden_BTD, **batch.arguments[index], past_key_values=cache))
            except _Reached:
                outputs.append(reached.pop())
            if not batch.ends and len(cache.layers) > index and cache.layers[index].is_initialized:
                prefix = (cache.layers[index].keys, cache.layers[index].values)
    finally:
        if handle is not None:
            handle.remove()
    return outputs


def _inputs(rows: Sequence[Sequence[int]], seen: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    ids_BT = torch.tensor([list(row) for row in rows], device=device)
    mask_BT = torch.ones(len(rows), seen + ids_BT.shape[1], dtype=torch.int64, device=device)
    positions_BT = torch.arange(seen, seen + ids_BT.shape[1], device=device).expand(len(rows), -1)
    return ids_BT, mask_BT, positions_BT

"""One forward pass with a flat key/value cache: what is traced for export is what is scored and compared.

Dimension key: B batch, P past tokens, T new tokens, H key/value heads, D head width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache


def flat_forward(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    past: Sequence[Tensor],
    logits_to_keep: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """Run a causal language model over new tokens, given the keys and values of earlier ones.

    Args:
        model: transformers model.
        input_ids: New tokens, int64, (B, T).
        attention_mask: 1 for tokens, 0 for padding, int64, (B, P + T).
        position_ids: Positions of the new tokens, int64, (B, T).
        past: Keys and values of each layer in turn, (B, H, P, D) each; empty for none.
        logits_to_keep: Logits of this many last positions; 0 for all.

    Returns:
        ``(logits (B, T or logits_to_keep, V), present)``, ``present`` laid out as ``past``, P + T long.
    """
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=cache_of(past),
        use_cache=True,
        logits_to_keep=logits_to_keep,
    )
    present = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
    return output.logits, present


def run_prefix(model: Any, prefix: Sequence[int], device: str) -> list[Tensor]:
    """Run the tokens that all prompts share, once.

    Args:
        model: transformers model.
        prefix: Token ids; empty for none.
        device: Torch device.

    Returns:
        Keys and values, one row; empty without a prefix.
    """
    if not prefix:
        return []
    ids_1T = torch.tensor([list(prefix)], device=device)
    positions_1T = torch.arange(len(prefix), device=device)[None]
    return flat_forward(model, ids_1T, torch.ones_like(ids_1T), positions_1T, [], 1)[1]


def cache_of(past: Sequence[Tensor]) -> DynamicCache:
    """Make transformers' cache of a flat one.

    Args:
        past: Keys and values of each layer in turn; empty for none.

    Returns:
        A cache to run the model with.
    """
    # Without a configuration every layer keeps its whole past; sliding windows stay right, since the mask makes them.
    cache = DynamicCache()
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    return cache


class TorchTextModel:
    """A transformers model behind the ``TextModel`` protocol."""

    def __init__(self, model: Any, device: str) -> None:
        """Keep the model.

        Args:
            model: transformers model on ``device``, in evaluation mode.
            device: Torch device.
        """
        self.model = model
        self.device = device

    @torch.inference_mode()
    def forward(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        past: Sequence[Any],
        logits_to_keep: int,
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """Run the model; see ``TextModel``.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T).
            position_ids: (B, T).
            past: Present of an earlier call, or empty.
            logits_to_keep: Last positions whose logits are wanted; 0 for all.

        Returns:
            ``(logits, present)``.
        """
        ids, mask, positions = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            for array in (input_ids, attention_mask, position_ids)
        )
        logits, present = flat_forward(self.model, ids, mask, positions, past, logits_to_keep)
        return logits.float().cpu().numpy(), present

    def repeat(self, past: Sequence[Any], batch: int) -> list[Any]:
        """Give every row of a batch the same past.

        Args:
            past: Present of a call with one row.
            batch: B.

        Returns:
            Views with B rows.
        """
        return [tensor.expand(batch, *tensor.shape[1:]) for tensor in past]

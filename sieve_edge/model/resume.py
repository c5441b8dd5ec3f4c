"""Runs a model from a layer on, reusing the dense hidden states below it.

A candidate that changes only layers from l on computes the same hidden states as the dense model up to there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.matrices import decoder_layers


class ResumableModel(TorchTextModel):
    """A ``TextModel`` whose calls can be recorded once and then resumed at any layer.

    The calls inside ``resuming`` must be those made inside ``recording``, in the same order.
    """

    def __init__(self, model: Any, device: str) -> None:
        """Keep the model.

        Args:
            model: transformers model on ``device``, in evaluation mode.
            device: Torch device.
        """
        super().__init__(model, device)
        self._layers = decoder_layers(model)
        self._hidden: list[list[Tensor]] = []
        self._present: list[list[Tensor]] = []
        self._first: int | None = None
        self._call = 0
        self._recording = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep every layer's input in the calls made inside the block.

        Yields:
            Nothing.
        """
        self._hidden, self._present = [], []
        handles = [
            layer.register_forward_pre_hook(lambda _, args: self._hidden[-1].append(args[0])) for layer in self._layers
        ]
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            for handle in handles:
                handle.remove()

    @contextmanager
    def resuming(self, first: int) -> Iterator[None]:
        """Start the calls made inside the block at a layer.

        Args:
            first: Layer that is computed first; layers below it are as they were recorded.

        Yields:
            Nothing.
        """
        self._first, self._call = first, 0
        skipped = self._layers[:first]
        for layer in skipped:
            layer.forward = self._replay
        try:
            yield
        finally:
            self._first = None
            for layer in skipped:
                del layer.forward

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
        if self._recording:
            self._hidden.append([])
        logits, present = super().forward(input_ids, attention_mask, position_ids, past, logits_to_keep)
        if self._recording:
            self._present.append(present)
        elif self._first is not None:
            kept = self._present[self._call]
            present = [
                old if index < 2 * self._first else new
                for index, (old, new) in enumerate(zip(kept, present, strict=True))
            ]
            self._call += 1
        return logits, present

    def _replay(self, *_: Any, **__: Any) -> Tensor:
        return self._hidden[self._call][self._first or 0]

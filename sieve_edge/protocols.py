"""What stages ask of runtimes; imports nothing heavy.

Dimension key: B batch, P past tokens, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Progress = Callable[[int], None]
"""Called with the number of units just finished."""


class TextModel(Protocol):
    """A causal language model with a key/value cache, in whatever runtime."""

    def forward(
        self,
        input_ids: Int64,
        attention_mask: Int64,
        position_ids: Int64,
        past: Sequence[Any],
        logits_to_keep: int,
    ) -> tuple[Float32, list[Any]]:
        """Run the model over new tokens.

        Args:
            input_ids: New tokens, (B, T).
            attention_mask: 1 for tokens, 0 for padding, (B, P + T).
            position_ids: Positions of the new tokens, (B, T).
            past: What an earlier call returned as present, or empty.
            logits_to_keep: Logits of this many last positions; 0 for all.

        Returns:
            ``(logits (B, kept, V), present)``.
        """
        ...

    def repeat(self, past: Sequence[Any], batch: int) -> list[Any]:
        """Give every row of a batch the same past.

        Args:
            past: Present of a call with one row.
            batch: B.

        Returns:
            The past with B rows.
        """
        ...

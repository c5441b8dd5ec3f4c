"""What stages ask of runtimes; imports nothing heavy.

Dimension key: B batch, P past tokens, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Chat:
    """How a model wants its chats written.

    Attributes:
        template: The model's chat template.
        start: Text of the start token, empty if there is none.
        end: Text of the token that ends a message, empty if there is none.
        adds_start: Whether the tokenizer puts it before every text by itself.
    """

    template: str
    start: str = ""
    end: str = ""
    adds_start: bool = False


@dataclass(frozen=True)
class Asked:
    """What a judge is asked about.

    Attributes:
        question: The prompt that was answered.
        answer: What the model wrote.
        references: Right answers.
    """

    question: str
    answer: str
    references: tuple[str, ...]


class Judge(Protocol):
    """Says whether written answers are correct."""

    def grade(self, asked: Sequence[Asked]) -> list[float]:
        """Judge answers.

        Args:
            asked: Answers with their questions.

        Returns:
            1 for correct, 0 for incorrect, not-a-number where the judge gave no verdict.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Say what judging took since this was asked last.

        Returns:
            ``model``, ``refused``, ``unparsable``, ``cut_off`` and more, for manifests.
        """
        ...

"""Types that weights are stored in: which one llama.cpp's quantizer takes, and how many bytes each needs.

Source: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` of llama.cpp's llama-quant.cpp.
"""

from collections.abc import Iterable

ROWS = {"Q8_0": 32, "Q4_0": 32, "Q5_K_M": 256, "Q4_K_M": 256}
"""Quantization of a GGUF target -> numbers that a row must be a multiple of; another row takes another type."""

WITH_IMPORTANCE = ("Q4_0", "Q5_K_M", "Q4_K_M")
"""Quantizations for which llama.cpp's quantizer heeds how much each input matters."""

MIXTURES = {"Q5_K_M": ("Q5_K", "Q6_K"), "Q4_K_M": ("Q4_K", "Q5_K", "Q6_K")}
"""Mixture -> the types among which llama.cpp chooses by a tensor's name and layer."""

FIRST_DOWN = {"Q4_0": "Q4_1"}
"""Quantization -> type of the first ``ffn_down`` tensors, where importance is given."""

_BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256}
_NEXT = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

BYTES = {
    "F32": 4.0,
    "F16": 2.0,
    "int8": 36 / 32,
    "int4": 20 / 32,
    "Q8_0": 34 / 32,
    "Q5_1": 24 / 32,
    "Q5_0": 22 / 32,
    "Q4_1": 20 / 32,
    "Q4_0": 18 / 32,
    "Q6_K": 210 / 256,
    "Q5_K": 176 / 256,
    "Q4_K": 144 / 256,
}
"""Type -> bytes of one number, its share of the scales included."""


def main_type(quantization: str) -> str:
    """Say which type most weights have.

    Args:
        quantization: The target's.

    Returns:
        The quantization itself, but for a mixture of types.
    """
    return MIXTURES.get(quantization, (quantization,))[0]


def fitting(kind: str, row: int) -> str:
    """Say what llama.cpp stores in place of a type whose blocks do not fill a row.

    Args:
        kind: Type that is wanted.
        row: Numbers in a row.

    Returns:
        The type itself where it fits; a type of smaller blocks, or F16 where that does not fit either.
    """
    kind = kind if row % _BLOCKS.get(kind, 1) == 0 else _NEXT.get(kind, "F16")
    return kind if row % _BLOCKS.get(kind, 1) == 0 else "F16"


def inner_types(quantization: str, row: int) -> tuple[str, ...]:
    """List the types that a weight may take which is no head.

    Args:
        quantization: The target's.
        row: Numbers in a row.

    Returns:
        Types; several for a mixture.
    """
    return tuple(dict.fromkeys(fitting(kind, row) for kind in MIXTURES.get(quantization, (quantization,))))


def head_type(quantization: str, row: int) -> str:
    """Say in which type llama.cpp stores the head, or the embedding where that is the head too.

    Args:
        quantization: The target's.
        row: Numbers in a row.

    Returns:
        The type: more exact than what is asked for, as long as rows fill its blocks.
    """
    return fitting(quantization if quantization in ("F32", "F16", "Q8_0") else "Q6_K", row)


def first_down(quantization: str, layers: int) -> int:
    """Count the ``ffn_down`` tensors, from the first, that llama.cpp does not trust to a quantization.

    Args:
        quantization: The target's.
        layers: Layers of the model.

    Returns:
        Tensors; both factors of a pair count.
    """
    return layers // 8 if quantization in FIRST_DOWN else 0


def most_bytes(kinds: Iterable[str]) -> float:
    """Say what a number takes at most.

    Args:
        kinds: Types that it may be stored in.

    Returns:
        Bytes.
    """
    return max(BYTES[kind] for kind in kinds)

"""Reads what stands before the weights of a GGUF file; lists are passed over, so large vocabularies cost nothing."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sieve_edge.errors import ArtifactError, EnvironmentMissing

FORMAT_KEY = "sieve_edge.factored.version"
FORMAT_VERSION = 1
"""Version of factored weights in GGUF files; rises when the names or the meaning of factor tensors change."""

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value -> its format for ``struct``."""

_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: its name, shape (rows first), type, and bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says before its weights.

    Attributes:
        version: Version of GGUF.
        fields: Metadata, lists left out.
        tensors: Tensors in the order of the file.
    """

    version: int
    fields: dict[str, Any]
    tensors: tuple[StoredTensor, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Args:
        path: The file.

    Returns:
        Metadata and tensors.

    Raises:
        EnvironmentMissing: If the package gguf, which knows the types, is missing.
        ArtifactError: If the file is not GGUF, or ends too early.
    """
    try:
        import gguf
    except ImportError as error:
        raise EnvironmentMissing("the package gguf is missing; run: pip install 'sieve-edge[gguf]'") from error
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ArtifactError(f"{path}: not a GGUF file, it does not start with {_MAGIC.decode()}")
            version, tensors, fields = _unpack(file, "I"), _unpack(file, "Q"), _unpack(file, "Q")
            if version not in _VERSIONS:
                raise ArtifactError(f"{path}: GGUF version {version}, known are {_VERSIONS}; convert it again")
            pairs = [(_text(file), _value(file)) for _ in range(fields)]
            infos = [_tensor(file, gguf) for _ in range(tensors)]
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: not a GGUF file, or a truncated one ({error})") from error
    return GgufHeader(version, {name: value for name, value in pairs if value is not None}, tuple(infos))


def _unpack(file: BinaryIO, form: str) -> Any:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_unpack(file, "Q")).decode("utf-8")


def _value(file: BinaryIO) -> Any:
    """Read a value; None for a list, which is passed over."""
    kind = _unpack(file, "I")
    if kind == _TEXT:
        return _text(file)
    if kind != _LIST:
        return _unpack(file, _FORMATS[kind])
    inner, count = _unpack(file, "I"), _unpack(file, "Q")
    if inner != _TEXT:
        file.seek(count * struct.calcsize(f"<{_FORMATS[inner]}"), 1)
        return None
    for _ in range(count):
        file.seek(_unpack(file, "Q"), 1)
    return None


def _tensor(file: BinaryIO, gguf: Any) -> StoredTensor:
    name = _text(file)
    shape = tuple(_unpack(file, "Q") for _ in range(_unpack(file, "I")))[::-1]
    kind = gguf.GGMLQuantizationType(_unpack(file, "I"))
    file.seek(8, 1)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return StoredTensor(name, shape, kind.name, math.prod(shape) // block * block_bytes)

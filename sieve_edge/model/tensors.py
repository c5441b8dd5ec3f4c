"""Writes tensors atomically, and turns a refusing disk into one clear line."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sieve_edge.errors import ArtifactError
from sieve_edge.files import disk_errors


@contextlib.contextmanager
def tensor_disk_errors(path: Path) -> Iterator[None]:
    """Do as ``disk_errors``, for writes that safetensors does: it hides the system's error in its own.

    Args:
        path: What is being written; named in the message.

    Yields:
        Nothing.

    Raises:
        ArtifactError: If the disk refuses.
    """
    try:
        with disk_errors(path):
            yield
    except SafetensorError as error:
        raise ArtifactError(
            f"{path}: cannot write ({error}); free space there or choose another --run-dir; finished stages are kept"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file: a reader sees the old file or the new one, never a part.

    Args:
        path: File to write; its folder exists.
        tensors: Name -> tensor on any device.
        metadata: Text kept beside the tensors.
    """
    part = path.with_name(path.name + ".part")
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with tensor_disk_errors(path):
        save_file(plain, part, metadata=dict(metadata or {}))
        part.replace(path)

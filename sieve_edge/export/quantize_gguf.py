"""Quantizes a GGUF file with llama.cpp's own quantizer, and says which type every tensor really took."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from sieve_edge.device.llama import RuntimeLog, runtime
from sieve_edge.errors import ArtifactError
from sieve_edge.protocols import Float32

FILE_TYPES = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q5_K_M": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
"""Quantization of a target -> llama.cpp's name for it."""

_PLAIN = ("F32",)

Types = dict[str, tuple[tuple[int, ...], str]]
"""Tensor -> ``(shape, type)``, rows first as in torch."""


def quantize_gguf(
    source: Path, out: Path, quantization: str, threads: int, importance: Mapping[str, Float32] | None = None
) -> Types:
    """Write a quantized copy.

    Args:
        source: GGUF file in float32.
        out: File to write.
        quantization: One of ``FILE_TYPES``.
        threads: Threads of the quantizer.
        importance: Tensor -> mean square of each of its inputs, (I,).

    Returns:
        The copy's tensors.

    Raises:
        ArtifactError: If a tensor was lost or changed its shape.
    """
    _run(source, out, int(FILE_TYPES[quantization]), threads, importance or {})
    before, after = (tensor_types(file) for file in (source, out))
    if {name: shape for name, (shape, _) in before.items()} != {name: shape for name, (shape, _) in after.items()}:
        raise ArtifactError(f"{out}: the quantizer lost a tensor or changed a shape; delete it and export again")
    return after


def unplanned(types: Types, planned: Mapping[str, Sequence[str]]) -> list[str]:
    """List the tensors whose type is not the planned one.

    Args:
        types: What ``quantize_gguf`` returned.
        planned: Tensor -> types that it may have; one that is not named is float32.

    Returns:
        A line for each.
    """
    return [
        f"{name}: {kind} instead of {' or '.join(planned.get(name, _PLAIN))}, rows of {shape[-1]} numbers"
        for name, (shape, kind) in types.items()
        if kind not in planned.get(name, _PLAIN)
    ]


def tensor_types(file: Path) -> Types:
    """List a GGUF's tensors.

    Args:
        file: GGUF file.

    Returns:
        Its tensors.
    """
    tensors = gguf.GGUFReader(file).tensors
    return {item.name: (tuple(map(int, item.shape))[::-1], item.tensor_type.name) for item in tensors}


def _run(source: Path, out: Path, file_type: int, threads: int, importance: Mapping[str, Float32]) -> None:
    """Run the quantizer of the installed llama.cpp."""
    api = runtime()
    log = RuntimeLog(api)
    # A name of null ends the list.
    entries = (api.llama_model_imatrix_data * (len(importance) + 1))()
    values = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in importance.items()}
    for entry, (name, array) in zip(entries, values.items(), strict=False):
        entry.name, entry.size = name.encode(), len(array)
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    if importance:
        params.imatrix = entries
    if api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise ArtifactError(f"{out}: llama.cpp cannot quantize {source} ({log.text()})")

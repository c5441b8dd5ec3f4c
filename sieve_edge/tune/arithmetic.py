"""The arithmetic of tuning's passes: bfloat16 where the processor multiplies it itself, else float32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sieve_edge.files import read_json, write_json

CHOSEN = "arithmetic.json"
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""torch's names of the instructions: two of x86, and the one of Arm."""


def settle(wanted: str, device: str, work: Path) -> str:
    """Choose the arithmetic once for a training, and keep the choice beside its state.

    A training that another processor goes on with would otherwise end with other weights than either of them makes.

    Args:
        wanted: ``"float32"``, ``"bfloat16"`` or ``"auto"``.
        device: Torch device.
        work: Existing folder of the training's state.

    Returns:
        ``"float32"`` or ``"bfloat16"``.
    """
    if wanted != "auto":
        return wanted
    file = work / CHOSEN
    if not file.is_file():
        write_json(file, {"dtype": "bfloat16" if has_bfloat16(device) else "float32"})
    chosen: str = read_json(file)["dtype"]
    return chosen


def has_bfloat16(device: str) -> bool:
    """Say whether a device multiplies bfloat16 itself; where it is emulated, it is slower than float32.

    Args:
        device: Torch device.

    Returns:
        True if it is known to; an old torch tells nothing of processors, which then count as without.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch's products of matrices use the instructions by oneDNN, which a build of torch may lack.
    if device != "cpu" or not hasattr(torch.cpu, "get_capabilities") or not torch.backends.mkldnn.is_available():
        return False
    known: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(known.get(flag, False) for flag in _CPU_FLAGS)

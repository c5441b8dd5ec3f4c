"""Keeps and reads the second moments that calibrate takes at each matrix.

Dimension key: N rows (tokens), D features of the side that is watched.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.errors import ArtifactError
from sieve_edge.model.tensors import write_tensors

GRAM_TOKENS, FISHER_TOKENS, FISHER_PROMPTS = "gram_tokens", "fisher_tokens", "fisher_prompts"

_BLOCKS = 4


def narrow_side(spec: MatrixSpec) -> str:
    """Name the side whose second moment the closed form needs.

    Args:
        spec: A matrix.

    Returns:
        ``"input"`` before a non-linearity, where the stack is wider than its input, and for width pruning, which
        chooses inputs; else ``"output"``.
    """
    return "input" if spec.side == "pre" or spec.source is not None else "output"


class Moments:
    """Sums of ``x x^T``, float64, by name; only the lower triangle is computed until ``full``."""

    def __init__(self) -> None:
        """Start with no sums."""
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, rows_ND: Tensor) -> None:
        """Add ``rows^T rows`` to a sum.

        Args:
            name: Which sum.
            rows_ND: Rows of any floating dtype, (N, D).
        """
        rows = rows_ND.detach().to(torch.float64)
        width = rows.shape[1]
        if name not in self.sums:
            self.sums[name] = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        step = -(-width // _BLOCKS)
        for start in range(0, width, step):
            block = self.sums[name][start:, start : start + step]
            block.addmm_(rows[:, start:].T, rows[:, start : start + step])

    def add_scalar(self, name: str, value: Tensor) -> None:
        """Add a number to a sum of one element.

        Args:
            name: Which sum.
            value: Scalar tensor.
        """
        self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()

    def full(self) -> dict[str, Tensor]:
        """Mirror the triangles; nothing can be added afterwards.

        Returns:
            Name -> symmetric matrix, float64, (D, D), or a scalar.
        """
        for name, value in self.sums.items():
            if value.dim():
                # One at a time, so that they are never in memory twice.
                self.sums[name] = value.tril() + value.tril(-1).T
        return self.sums


class CalibrationStats:
    """What calibrate left, read matrix by matrix."""

    def __init__(self, folder: Path) -> None:
        """Open the file.

        Args:
            folder: Artifact of calibrate.
        """
        self._file: Any = safe_open(folder / "moments.safetensors", framework="pt")
        self._names = set(self._file.keys())

    def gram(self, name: str, side: str) -> Tensor:
        """Read a Gram matrix.

        Args:
            name: Matrix name.
            side: ``"input"`` or ``"output"``.

        Returns:
            Sum of ``x x^T`` or ``y y^T``, float64, (D, D).
        """
        return self._read(f"gram.{name}.{side}")

    def fisher(self, name: str) -> tuple[Tensor, float]:
        """Read the Fisher matrix of a matrix's output.

        Args:
            name: Matrix name.

        Returns:
            ``(moment, trace)``: the moment on the narrow side, float64, (D, D), and the trace of S (O, O).
        """
        return self._read(f"fisher.{name}"), float(self._read(f"fisher_trace.{name}"))

    def weighted_gram(self, name: str, side: str, share: float) -> Tensor:
        """Mix the Gram matrix of all tokens alike with that of tokens weighed by their gradient's energy.

        Args:
            name: Matrix name.
            side: The narrow side, ``"input"`` or ``"output"``.
            share: Weight of the second one, in [0, 1).

        Returns:
            Mean of ``x x^T`` per token, float64, (D, D).
        """
        plain_DD = self.gram(name, side) / self._read(GRAM_TOKENS)
        if share == 0.0:
            return plain_DD
        weighed_DD = self._read(f"weighted_gram.{name}") / self._read(f"fisher_trace.{name}")
        return share * weighed_DD + (1.0 - share) * plain_DD

    def token_weights(self, name: str, share: float) -> tuple[float, float]:
        """Say how much a token weighs by the energy of its gradient, mixed with all tokens alike.

        Args:
            name: Matrix name.
            share: Weight of the gradient's energy, in [0, 1).

        Returns:
            Weight of a prompt's last token, and of any other; 1 on average.
        """
        if share == 0.0 or f"last_energy.{name}" not in self._names:
            return 1.0, 1.0
        total, last = (float(self._read(f"{kind}.{name}")) for kind in ("fisher_trace", "last_energy"))
        prompts, tokens = (float(self._read(count)) for count in (FISHER_PROMPTS, FISHER_TOKENS))
        mean = total / tokens
        each = (last / prompts / mean, (total - last) / (tokens - prompts) / mean)
        return share * each[0] + 1.0 - share, share * each[1] + 1.0 - share

    def _read(self, name: str) -> Tensor:
        if name not in self._names:
            raise ArtifactError(f"calibration statistics lack '{name}'; delete the calibrate folder and build again")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def save_moments(path: Path, sums: Mapping[str, Tensor], progress: Mapping[str, str]) -> None:
    """Write sums atomically.

    Args:
        path: File to write.
        sums: Name -> float64 tensor.
        progress: How far the pass is, kept as the file's metadata.
    """
    # One key: safetensors writes several in no fixed order, and equal runs must give equal files.
    write_tensors(path, sums, {"progress": json.dumps(dict(progress), sort_keys=True)})


class Checkpoint:
    """Saves the sums of a pass while it runs, so often that saving takes at most a twentieth of its time."""

    _SHARE = 0.05

    def __init__(self, path: Path) -> None:
        """Start counting.

        Args:
            path: File to write.
        """
        self._path = path
        self._started = time.monotonic()
        self._spent = 0.0

    def offer(self, sums: Mapping[str, Tensor], progress: Mapping[str, str]) -> None:
        """Save, if it is time.

        Args:
            sums: Name -> float64 tensor.
            progress: How far the pass is.
        """
        now = time.monotonic()
        if self._spent > self._SHARE * (now - self._started):
            return
        save_moments(self._path, sums, progress)
        self._spent += time.monotonic() - now


def load_moments(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read sums of an unfinished pass.

    Args:
        path: File that ``save_moments`` wrote, or nothing.

    Returns:
        ``(sums, progress)``, both empty if the file is missing.
    """
    if not path.is_file():
        return {}, {}
    opened: Any = safe_open(path, framework="pt")
    with opened as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["progress"])  # noqa: SIM118

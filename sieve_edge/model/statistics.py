"""Gathers, keeps and reads the second moments that calibrate takes at each matrix.

Dimension key: N rows (tokens), D features of the side that is watched, I in_features, O out_features.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.errors import ArtifactError
from sieve_edge.model.tensors import write_tensors

_BLOCKS = 4


def narrow_side(spec: MatrixSpec) -> str:
    """Name the side whose second moment the closed form needs.

    Args:
        spec: A matrix.

    Returns:
        ``"input"`` before a non-linearity, where the stack is wider than its input; else ``"output"``.
    """
    return "input" if spec.side == "pre" else "output"


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
        """Mirror the triangles.

        Returns:
            Name -> symmetric matrix, float64, (D, D), or a scalar.
        """
        return {name: value.tril() + value.tril(-1).T if value.dim() else value for name, value in self.sums.items()}


@contextmanager
def watch_grams(
    model: Any,
    specs: Sequence[MatrixSpec],
    sides: Mapping[str, Sequence[str]],
    moments: Moments,
    mask: Callable[[], Tensor],
) -> Iterator[None]:
    """Add the Gram matrices of every forward pass inside the block.

    Args:
        model: Dense transformers model.
        specs: Its matrices.
        sides: Matrix name -> sides wanted, ``"input"`` or ``"output"``.
        moments: Where sums go, as ``gram.<matrix>.<side>``.
        mask: Gives the mask of real tokens of the pass under way, bool, (B, T).

    Yields:
        Nothing.

    Raises:
        ValueError: If the output of a stack of several modules is asked for.
    """
    handles = []
    for spec in specs:
        module = model.get_submodule(spec.paths[0])
        if "input" in sides[spec.name]:
            name = f"gram.{spec.name}.input"
            handles.append(
                module.register_forward_pre_hook(lambda _, args, name=name: moments.add(name, args[0][mask()]))
            )
        if "output" in sides[spec.name]:
            if len(spec.paths) > 1:
                raise ValueError(f"{spec.name}: the output Gram of a stack of several modules is never needed")
            name = f"gram.{spec.name}.output"
            handles.append(
                module.register_forward_hook(
                    lambda module, _, output, name=name: moments.add(name, _without_bias(module, output)[mask()])
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_fishers(model: Any, specs: Sequence[MatrixSpec], moments: Moments) -> Iterator[None]:
    """Add the Fisher matrices of every backward pass inside the block.

    Before a non-linearity the moment is that of ``W^T g``, the loss's gradient at the shared input, which is
    ``W^T S W`` for the whole stack at the input's width; after one, that of ``g`` at the output. Positions
    without influence on the answer (padding) have a zero gradient and add nothing.

    Args:
        model: Dense transformers model.
        specs: Its matrices.
        moments: Where sums go, as ``fisher.<matrix>`` and, summed over outputs, ``fisher_trace.<matrix>``.

    Yields:
        Nothing.
    """

    def on_input(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            args[0].register_hook(lambda gradient: moments.add(f"fisher.{name}", gradient.flatten(0, -2)))

        return hook

    def on_output(name: str, *, matrix: bool) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                moments.add_scalar(f"fisher_trace.{name}", gradient.square().sum())
                if matrix:
                    moments.add(f"fisher.{name}", gradient.flatten(0, -2))

            output.register_hook(add)

        return hook

    handles = []
    for spec in specs:
        narrow_input = narrow_side(spec) == "input"
        modules = [model.get_submodule(path) for path in spec.paths]
        if narrow_input:
            handles.append(modules[0].register_forward_pre_hook(on_input(spec.name)))
        handles += [module.register_forward_hook(on_output(spec.name, matrix=not narrow_input)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _without_bias(module: Any, output: Tensor) -> Tensor:
    return output if module.bias is None else output - module.bias

"""A dense model and its projections as plain arrays, so that other processes can use them where they lie.

A process that is given the arrays makes tensors of them without copying, be they read-only shared memory.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sieve_edge.errors import ArtifactError, ModelError
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.load import empty_model

Array = NDArray[Any]


@dataclass(frozen=True)
class ModelArrays:
    """A model without its modules.

    Attributes:
        config: transformers configuration.
        arrays: Its distinct parameters and buffers.
        places: Name of each parameter and buffer -> index of its array; tied ones have one index.
    """

    config: Any
    arrays: tuple[Array, ...]
    places: Mapping[str, int]


def model_arrays(model: Any) -> ModelArrays:
    """Take a model apart.

    Args:
        model: transformers model on any device.

    Returns:
        Its arrays, which share memory with a model on the CPU.
    """
    indices: dict[int, int] = {}
    arrays: list[Array] = []
    places: dict[str, int] = {}
    for name, tensor in _tensors(model):
        if id(tensor) not in indices:
            indices[id(tensor)] = len(arrays)
            arrays.append(as_array(tensor))
        places[name] = indices[id(tensor)]
    return ModelArrays(model.config, tuple(arrays), places)


def rebuild_model(parts: ModelArrays, device: str) -> Any:
    """Put a model together again, without reading any file.

    Args:
        parts: What ``model_arrays`` returned; on the CPU the model shares their memory.
        device: Torch device.

    Returns:
        Model in evaluation mode that computes what the original computes.

    Raises:
        ModelError: If this version of transformers gives the model other parameters or buffers.
    """
    model = empty_model(parts.config)
    found = dict(_tensors(model))
    if found.keys() != parts.places.keys():
        differing = ", ".join(sorted(found.keys() ^ parts.places.keys())[:3])
        raise ModelError(f"the model cannot be rebuilt from its configuration: it differs in {differing}")
    tensors = [as_tensor(array).to(device) for array in parts.arrays]
    # One Parameter per array: what was tied stays tied.
    parameters = [nn.Parameter(tensor, requires_grad=False) for tensor in tensors]
    for name, index in parts.places.items():
        owner, _, attribute = name.rpartition(".")
        value = parameters[index] if isinstance(found[name], nn.Parameter) else tensors[index]
        setattr(model.get_submodule(owner), attribute, value)
    return model.eval()


class ArrayBank:
    """A ``Bank`` in memory."""

    def __init__(self, arrays: Mapping[str, Mapping[str, Array]]) -> None:
        """Keep the arrays.

        Args:
            arrays: Matrix name -> what ``ProjectionBank.factors`` reads, as arrays.
        """
        self._arrays = arrays

    def nested(self, matrix: str) -> tuple[Tensor, Tensor] | None:
        """Read the factors of all ranks at once, where the method nests; see ``Bank``.

        Args:
            matrix: Matrix name.

        Returns:
            ``(down (Rmax, I), up (Rmax, O))``, or None if each rank has a fit of its own.
        """
        factors = self._arrays[matrix]
        return (as_tensor(factors["down"]), as_tensor(factors["up"])) if "down" in factors else None

    def at(self, matrix: str, rank: int) -> tuple[Tensor, Tensor]:
        """Read the projection of one rank; see ``Bank``.

        Args:
            matrix: Matrix name.
            rank: R.

        Returns:
            ``(down (R, I), up (R, O))``.

        Raises:
            ArtifactError: If the bank has no projection of this rank.
        """
        factors = self._arrays[matrix]
        if f"down.{rank}" in factors:
            return as_tensor(factors[f"down.{rank}"]), as_tensor(factors[f"up.{rank}"])
        if "down" in factors and rank <= len(factors["down"]):
            return as_tensor(factors["down"][:rank]), as_tensor(factors["up"][:rank])
        raise ArtifactError(f"the projection bank has no rank {rank} for {matrix}")


def bank_arrays(bank: ProjectionBank, matrices: Sequence[str]) -> ArrayBank:
    """Read a whole bank into memory.

    Args:
        bank: Artifact of learn.
        matrices: Matrix names.

    Returns:
        The same projections.
    """
    read = {matrix: bank.factors(matrix) for matrix in matrices}
    return ArrayBank({matrix: {name: as_array(value) for name, value in row.items()} for matrix, row in read.items()})


def as_array(tensor: Tensor) -> Array:
    """View a tensor as an array.

    Args:
        tensor: Any tensor.

    Returns:
        Array that shares memory with a contiguous tensor on the CPU.
    """
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array


def as_tensor(array: Array) -> Tensor:
    """View an array as a tensor.

    Args:
        array: Array that nobody writes to; may be read-only.

    Returns:
        Tensor that shares its memory.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)

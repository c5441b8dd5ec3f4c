"""Writes a model's parameters beside its graph, each once, and accounts for every one of them."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, external_data_helper
from torch import Tensor, nn

from sieve_edge.errors import ArtifactError
from sieve_edge.export.accounting import check_stored
from sieve_edge.files import disk_errors

GRAPH = "model.onnx"
DATA = "model.onnx.data"
TRANSPOSED = ".transposed"
_ALIGNMENT_BYTES = 64
_TYPES = {
    torch.float32: int(TensorProto.FLOAT),
    torch.float16: int(TensorProto.FLOAT16),
    torch.uint8: int(TensorProto.UINT8),
}


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """List what has to be stored.

    Args:
        model: Any model.

    Returns:
        Name -> parameter; tied ones once, under their first name.
    """
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def write_weights_(
    proto: onnx.ModelProto, traced: set[str], parameters: Mapping[str, Tensor], transposed: set[str], folder: Path
) -> None:
    """Write what the graph reads to one data file, as initializers, and write the graph.

    Weights are copied one by one, so memory does not grow with the model and no protobuf reaches its limit of 2 GiB.

    Args:
        proto: Model; changed in place.
        traced: Inputs of the graph that are parameters of the model, and stop being inputs.
        parameters: Name -> tensor to store: float32, float16 or uint8; those that nothing reads are left out.
        transposed: Weights stored as (I, O), under their name with ``.transposed``.
        folder: Folder that gets ``model.onnx`` and ``model.onnx.data``.
    """
    graph = proto.graph
    used = {name for node in graph.node for name in node.input}
    inputs = [value for value in graph.input if value.name not in traced]
    stored = [name for name in parameters if name in used]
    del graph.input[:]
    graph.input.extend(inputs)
    renamed = {name: name + TRANSPOSED for name in transposed}
    with disk_errors(folder / DATA), (folder / DATA).open("wb") as file:
        for name in stored:
            tensor = parameters[name].T if name in transposed else parameters[name]
            file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
            graph.initializer.append(_external(renamed.get(name, name), tensor, file.tell()))
            file.write(tensor.contiguous().numpy().data)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    with disk_errors(folder / GRAPH):
        (folder / GRAPH).write_bytes(proto.SerializeToString())


def account(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    """Check that a written file holds every parameter once, by name, shape and type, and nothing else.

    Args:
        folder: Folder with ``model.onnx`` and ``model.onnx.data``.
        parameters: Name -> tensor that must be stored.

    Raises:
        ArtifactError: If a tensor is missing, is left over, or has another shape, type or place.
    """
    path = folder / GRAPH
    graph = onnx.load(path, load_external_data=False).graph
    size = (folder / DATA).stat().st_size
    stored: dict[str, tuple[list[int], int, int]] = {}
    for tensor in graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        name, dims = tensor.name, list(tensor.dims)
        if name.endswith(TRANSPOSED) and name not in parameters:
            name, dims = name.removesuffix(TRANSPOSED), dims[::-1]
        if name in stored:
            raise ArtifactError(f"{path}: weight {name} is stored twice")
        place = external_data_helper.ExternalDataInfo(tensor)
        length = int(place.length or 0)
        stored[name] = (dims, int(tensor.data_type), length)
        if place.location != DATA or int(place.offset or 0) + length > size:
            raise ArtifactError(f"{path}: weight {name} lies outside {DATA} ({size} bytes)")
    wanted = {
        name: (list(parameter.shape), _TYPES[parameter.dtype], parameter.element_size() * parameter.numel())
        for name, parameter in parameters.items()
    }
    check_stored(path, stored, wanted)


def _external(name: str, tensor: Tensor, offset: int) -> TensorProto:
    proto = TensorProto(name=name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)
    proto.data_location = TensorProto.EXTERNAL
    place = {"location": DATA, "offset": offset, "length": tensor.numel() * tensor.element_size()}
    for key, value in place.items():
        proto.external_data.add(key=key, value=str(value))
    return proto

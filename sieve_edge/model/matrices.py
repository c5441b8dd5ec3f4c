"""Which matrices a model has: the four stacked multiplications of each layer, by its architecture file."""

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.errors import ModelError

ARCHITECTURES = resources.files("sieve_edge.model") / "architectures"


def known_architectures() -> dict[str, dict[str, Any]]:
    """Read every architecture file.

    Returns:
        transformers ``model_type`` -> content of its file.
    """
    files = [file for file in ARCHITECTURES.iterdir() if file.name.endswith(".json")]
    return {
        file.name.removesuffix(".json"): json.loads(file.read_text(encoding="utf-8")) for file in sorted(files, key=str)
    }


def find_matrices(model: nn.Module, model_type: str) -> list[MatrixSpec]:
    """List the matrices of a dense model in the order of its layers.

    Args:
        model: Model as transformers loads it.
        model_type: Its configuration's ``model_type``.

    Returns:
        Four matrices a layer.

    Raises:
        ModelError: If the family has no architecture file, a matrix it names is missing, parts do not
            fit, or a linear of a layer is not named.
    """
    known = known_architectures()
    if model_type not in known:
        raise ModelError(
            f"model family '{model_type}' is not known ({', '.join(known)}); "
            f"add sieve_edge/model/architectures/{model_type}.json, on the pattern of llama.json"
        )
    architecture = known[model_type]
    try:
        layers = model.get_submodule(architecture["layers"])
    except AttributeError as error:
        raise ModelError(f"{model_type}.json: the model has no module '{architecture['layers']}'") from error
    specs = []
    for index, layer in layers.named_children():
        prefix = f"{architecture['layers']}.{index}"
        layer_specs = [
            _spec(model, f"{index}.{kind}", [f"{prefix}.{part}" for part in entry["parts"]], entry["side"])
            for kind, entry in architecture["matrices"].items()
        ]
        named = {path for spec in layer_specs for path in spec.paths}
        found = {f"{prefix}.{path}" for path, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        if found - named:
            raise ModelError(f"{model_type}.json: linears that no matrix names: {', '.join(sorted(found - named))}")
        specs += layer_specs
    return specs


def decoder_layers(model: Any) -> list[nn.Module]:
    """List the layers that a model runs one after the other.

    Args:
        model: transformers model of a known family.

    Returns:
        Its layers, in order.
    """
    layers = model.get_submodule(known_architectures()[model.config.model_type]["layers"])
    return [layer for _, layer in layers.named_children()]


def stacked_weight(model: nn.Module, spec: MatrixSpec) -> Tensor:
    """Stack the weights of a matrix's parts.

    Args:
        model: Dense model.
        spec: The matrix.

    Returns:
        weight_OI, in the model's dtype, detached; a copy where there are several parts.
    """
    parts = [_weight(model.get_submodule(path)) for path in spec.paths]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def stacked_bias(model: nn.Module, spec: MatrixSpec) -> Tensor | None:
    """Stack the biases of a matrix's parts; parts without one count as zero if another has one.

    Args:
        model: Dense model.
        spec: The matrix.

    Returns:
        bias_O, or None if no part has a bias.
    """
    modules: list[Any] = [model.get_submodule(path) for path in spec.paths]
    if all(module.bias is None for module in modules):
        return None
    biases = []
    for module, features in zip(modules, spec.part_features, strict=True):
        bias = module.bias
        biases.append(torch.zeros(features, device=module.weight.device) if bias is None else bias.detach())
    return torch.cat(biases)


def count_params(model: nn.Module) -> int:
    """Count a model's parameters, tied ones once.

    Args:
        model: Any model.

    Returns:
        Number of parameters.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def linear_params(specs: Sequence[MatrixSpec]) -> int:
    """Count the parameters of the dense matrices.

    Args:
        specs: Matrices of a model.

    Returns:
        Sum of O * I.
    """
    return sum(spec.params for spec in specs)


def _spec(model: nn.Module, name: str, paths: list[str], side: str) -> MatrixSpec:
    weights = []
    for path in paths:
        try:
            weights.append(_weight(model.get_submodule(path)))
        except AttributeError as error:
            raise ModelError(f"matrix {name}: the model has no linear '{path}'") from error
    inputs = {weight.shape[1] for weight in weights}
    if len(inputs) != 1:
        raise ModelError(f"matrix {name}: its parts read inputs of {sorted(inputs)} features, must be one")
    features = tuple(weight.shape[0] for weight in weights)
    return MatrixSpec(name, tuple(paths), features, sum(features), inputs.pop(), side)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise AttributeError("no two-dimensional weight")
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()

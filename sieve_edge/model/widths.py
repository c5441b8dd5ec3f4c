"""Width pruning: whole inputs of the matrices that write to the residual stream go, with what made them.

The units are channels of an MLP, and key/value heads with the queries that share them. What is left is a dense model
with narrower layers, which needs no runtime of its own.

Dimension key: I in_features, O out_features, R kept inputs.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.errors import ModelError
from sieve_edge.model.factored import install_narrow_
from sieve_edge.model.matrices import known_architectures, stacked_bias, stacked_weight


def width_specs(specs: Sequence[MatrixSpec], config: Any) -> tuple[MatrixSpec, ...]:
    """Describe the matrices of a model as width pruning sees them: one for each block, with its source.

    Args:
        specs: Matrices of the model, in order.
        config: transformers configuration.

    Returns:
        The matrices that write to the residual stream; each counts its source's parameters too.

    Raises:
        ModelError: If no stock graph of llama.cpp takes this family's layers at different widths.
    """
    width = known_architectures()[config.model_type].get("gguf", {}).get("width")
    if width is None:
        able = [name for name, entry in known_architectures().items() if "width" in entry.get("gguf", {})]
        raise ModelError(
            f"model family '{config.model_type}': llama.cpp's graph takes no layers of different widths "
            f"(only {', '.join(able)}); choose a target with factored weights"
        )
    described = []
    for before, spec in pairwise(specs):
        if spec.side == "post":
            field = width["units"].get(spec.kind)
            unit = 1 if field is None else spec.in_features // int(getattr(config, field))
            described.append(replace(spec, source=before, unit=unit))
    return tuple(described)


def narrow_(model: nn.Module, spec: MatrixSpec, down_RI: Tensor, up_RO: Tensor) -> dict[str, dict[str, Any]]:
    """Cut a block to the inputs that its projection reads, in place.

    Args:
        model: Model that is changed.
        spec: Matrix with a source.
        down_RI: Projection whose columns are zero but for R inputs, (R, I).
        up_RO: Its second factor, (R, O).

    Returns:
        Layout of the matrix and of its source for the checkpoint's configuration.

    Raises:
        ModelError: If the projection does not read exactly R inputs in whole units.
    """
    kept_R = (down_RI != 0.0).any(0).nonzero().flatten()
    units = kept_R[:: spec.unit] // spec.unit
    whole = torch.equal(_rows(units, spec.unit), kept_R)
    if spec.source is None or len(kept_R) != len(down_RI) or not whole:
        raise ModelError(
            f"{spec.name}: a projection of rank {len(down_RI)} reads {len(kept_R)} inputs, not whole units"
        )
    source = spec.source
    # Each part of the source makes so many of its outputs for each unit.
    rows = [_rows(units, features * spec.unit // spec.in_features) for features in source.part_features]
    starts = [sum(source.part_features[:index]) for index in range(len(rows))]
    kept_O = torch.cat([part + start for part, start in zip(rows, starts, strict=True)])
    bias_O = stacked_bias(model, source)
    weight_OR = (up_RO.double().T @ down_RI.double()[:, kept_R]).float()
    made = _install(
        model,
        source,
        stacked_weight(model, source)[kept_O],
        None if bias_O is None else bias_O[kept_O],
        list(map(len, rows)),
    )
    read = _install(model, spec, weight_OR, stacked_bias(model, spec), list(spec.part_features))
    return {source.name: made, spec.name: read}


def _install(
    model: nn.Module, spec: MatrixSpec, weight_OI: Tensor, bias_O: Tensor | None, part_features: list[int]
) -> dict[str, Any]:
    in_features, bias = weight_OI.shape[1], bias_O is not None
    parts = install_narrow_(model, spec.paths, in_features, part_features, bias)
    for part, block_OI in zip(parts, weight_OI.split(part_features), strict=True):
        part.weight.data = block_OI.to(model.device, copy=True)
    if bias_O is not None:
        for part, block_O in zip(parts, bias_O.split(part_features), strict=True):
            part.bias.data = block_O.to(model.device, copy=True)
    shape = {"in_features": in_features, "part_features": part_features, "bias": bias}
    return {"paths": list(spec.paths), **shape, "storage": "narrow"}


def _rows(units: Tensor, each: int) -> Tensor:
    return (units[:, None] * each + torch.arange(each, device=units.device)).flatten()

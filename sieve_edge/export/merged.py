"""Multiplies a model's factors out, for runtimes that know no factored weights: no smaller and no faster than dense."""

from typing import Any

import torch

from sieve_edge.export.to_gguf import stack_at
from sieve_edge.model.factored import FactoredLinear, install_narrow_


@torch.inference_mode()
def merge_(model: Any) -> dict[str, str]:
    """Replace every factored matrix by dense linears that compute the same, in place.

    Args:
        model: transformers model with factored linears, float32.

    Returns:
        Name of each new weight -> that of the factor which reads the same inputs.
    """
    names: dict[str, str] = {}
    factored = [(path, module) for path, module in model.named_modules() if isinstance(module, FactoredLinear)]
    for path, module in factored:
        _, paths = stack_at(model, path)
        product_IO = module.multiply(torch.eye(module.in_features, device=model.device))
        if module.bias is not None:
            product_IO = product_IO - module.bias
        parts = install_narrow_(model, paths, module.in_features, module.part_features, module.bias is not None)
        names |= {f"{part}.weight": f"{path}.down.weight" for part in paths}
        features = list(module.part_features)
        for part, block_OI in zip(parts, product_IO.T.split(features), strict=True):
            part.weight.data = block_OI.contiguous()
        if module.bias is not None:
            for part, block_O in zip(parts, module.bias.split(features), strict=True):
                part.bias.data = block_O.clone()
    return names

"""The type that every parameter is stored in on a target, before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sieve_edge.config import BITS, BLOCK, Target
from sieve_edge.errors import ConfigError
from sieve_edge.model.matrices import known_architectures
from sieve_edge.recipe import QuantizeRecipe
from sieve_edge.weight_types import FIRST_DOWN, ROWS, first_down, fitting, head_type, inner_types

Plan = Mapping[str, Mapping[str, Any]]
"""Parameter -> what ``plan_types`` says of it."""


def plan_types(model: Any, target: Target) -> dict[str, dict[str, Any]]:
    """Choose a type for every parameter.

    Args:
        model: transformers model.
        target: Format and quantization.

    Returns:
        Parameter -> ``shape``, ``type``, ``why`` where it cannot have the target's own type, and for GGUF ``types``,
        those that llama.cpp may choose, and ``rule`` where it has its own for such a tensor.
    """
    return dict(_gguf_plan(model, target) if target.format == "gguf" else _onnx_plan(model, target))


def misfits(plan: Plan) -> list[str]:
    """List the weights that cannot have the target's type.

    Args:
        plan: As from ``plan_types``.

    Returns:
        A line for each.
    """
    return [f"{name}: {entry['why']}" for name, entry in plan.items() if "why" in entry]


def rules(plan: Plan) -> list[str]:
    """List the weights for which llama.cpp has rules of its own.

    Args:
        plan: As from ``plan_types``.

    Returns:
        A line for each.
    """
    return [f"{name}: {entry['rule']}" for name, entry in plan.items() if "rule" in entry]


def misfit_table(plans: Mapping[str, Mapping[str, Mapping[str, Any]]], target: Target) -> list[str]:
    """Write the weights that cannot have the target's type as a table, to be read before anything is written.

    Args:
        plans: Model -> plan, as from ``plan_types``.
        target: Quantization.

    Returns:
        Lines, the first a title; none where every weight fits.
    """
    rows = [
        (kind, name, "x".join(map(str, entry["shape"])), entry["type"], entry["why"])
        for kind, plan in plans.items()
        for name, entry in plan.items()
        if "why" in entry
    ]
    if not rows:
        return []
    table = [("model", "weight", "shape", "type", "why"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in table]
    return [f"{len(rows)} weights cannot have the type {target.quantization}, which the recipe allows:", *lines]


def refuse_misfits(lines: Sequence[str], target: Target, recipe: QuantizeRecipe) -> None:
    """Refuse weights that do not fit, unless the recipe allows it.

    Args:
        lines: As from ``misfits``.
        target: Quantization.
        recipe: Whether it is allowed.

    Raises:
        ConfigError: If it is not; every weight is named.
    """
    if lines and not recipe.allow_fallback:
        raise ConfigError(
            f"quantization {target.quantization} of target {target.name}",
            [*lines, "choose another quantization or rank_multiple, or --set quantize.allow_fallback=true"],
        )


def readers(model: Any) -> dict[str, nn.Module]:
    """Find the linear that reads each weight.

    Args:
        model: transformers model.

    Returns:
        Weight's name -> linear; tied ones have the name they come with first.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(module.weight)]: module for module in model.modules() if isinstance(module, nn.Linear)}


def _onnx_plan(model: Any, target: Target) -> Iterator[tuple[str, dict[str, Any]]]:
    embedding = _names(model, model.get_input_embeddings().weight)
    in_blocks = {*readers(model), *embedding}
    wanted = target.quantization
    for name, parameter in model.named_parameters():
        entry: dict[str, Any] = {"shape": list(parameter.shape), "type": "F32"}
        if parameter.dim() != 2 or wanted == "F32":
            pass
        elif wanted in BITS and name not in in_blocks:
            entry["why"] = "stays F32, since it is neither the embedding nor a weight that is stored (out, in)"
        elif wanted in BITS and name in embedding and parameter.shape[1] % BLOCK:
            entry["why"] = f"stays F32, since an embedding of width {parameter.shape[1]} is no multiple of {BLOCK}"
        else:
            entry["type"] = wanted
        yield name, entry


def _gguf_plan(model: Any, target: Target) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted, head = target.quantization, model.get_output_embeddings().weight
    first = _down_names(model)[: first_down(wanted, model.config.num_hidden_layers)]
    for name, parameter in model.named_parameters():
        shape = list(parameter.shape)
        if parameter.dim() != 2:
            yield name, {"shape": shape, "type": "F32", "types": ["F32"]}
            continue
        row = shape[1]
        # A head takes another type by itself where a mixture's rows are too short, so it needs less than the rest.
        types, multiple = inner_types(wanted, row), ROWS.get(wanted, 1)
        told = None
        if parameter is head:
            types, multiple = (head_type(wanted, row),), min(multiple, BLOCK)
            told = f"the head, which has rows of {row}" if types != (wanted,) else None
        elif name in first:
            types = (fitting(FIRST_DOWN[wanted], row),)
            told = "the down projections of the first layers"
        entry = {"shape": shape, "type": wanted if told is None else types[0], "types": list(types)}
        if row % multiple:
            entry |= {"type": types[0], "why": f"not {wanted}, since its rows of {row} are no multiple of {multiple}"}
        elif told:
            entry["rule"] = f"{types[0]}, not {wanted}, by llama.cpp's own rule for {told}"
        yield name, entry


def _down_names(model: Any) -> list[str]:
    """List the weights that llama.cpp calls ffn_down, in its order: by layer, the first factor before the second."""
    known = known_architectures()[model.config.model_type]
    part = known["matrices"]["down"]["parts"][0]
    return [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(f"{known['layers']}.") and f".{part}." in name and parameter.dim() == 2
    ]


def _names(model: Any, wanted: Tensor) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter is wanted]

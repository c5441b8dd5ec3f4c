"""Stage: how each weight is stored on the target: its type, and its codes or how much its inputs matter.

The dense model is planned by the same rules as the pruned one, so that both can be compared.

Dimension key: O out_features, I in_features, N tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sieve_edge.config import BITS, BLOCK, Target
from sieve_edge.errors import ConfigError
from sieve_edge.files import write_json
from sieve_edge.model.blocks import Blocks, pack, restore, round_nearest, round_with_gram
from sieve_edge.model.flat import flat_forward
from sieve_edge.model.statistics import Moments
from sieve_edge.model.tensors import write_tensors
from sieve_edge.progress import Progress
from sieve_edge.recipe import QuantizeRecipe

ROWS = {"Q8_0": 32, "Q4_0": 32, "Q5_K_M": 256, "Q4_K_M": 256}
"""Quantization of a GGUF target -> numbers that a row must be a multiple of; another row takes another type."""

WITH_IMPORTANCE = ("Q4_0", "Q5_K_M", "Q4_K_M")
"""Quantizations for which llama.cpp's quantizer heeds how much each input matters."""

PLAN = "plan.json"


def quantize(
    models: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    target: Target,
    recipe: QuantizeRecipe,
    out: Path,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Plan the storage of every weight, and compute what the plan needs.

    Reads the models; writes ``plan.json``, and for each model a safetensors file: ``W.codes`` and ``W.scales`` where
    weights become blocks of integers, the mean square of every input where llama.cpp quantizes. Starts over when
    interrupted. Costs a pass over the prompts for each model, and a Cholesky factor for each weight (GPTQ).

    Args:
        models: ``"dense"`` and ``"pruned"`` -> transformers model, float32.
        prompts: Token ids of calibration prompts, for each model in its own tokens.
        target: Format and quantization.
        recipe: Settings.
        out: Work folder.
        progress: Where progress is shown.

    Returns:
        ``(metrics, fallbacks)``: weights whose rows do not fit the type take another one, if the recipe allows it.
    """
    plans = {kind: plan_types(model, target) for kind, model in models.items()}
    fallbacks = [f"{kind}: {line}" for kind, plan in plans.items() for line in misfits(plan)]
    refuse_misfits(fallbacks, target, recipe)
    for line in misfit_table(plans, target):
        progress.warn(f"  {line}")
    errors: dict[str, float] = {}
    measured: dict[str, dict[str, float]] = {}
    for kind, model in models.items():
        wanted = [name for name, entry in plans[kind].items() if entry["type"] == target.quantization]
        if target.quantization in BITS:
            calibrated = recipe.method == "gptq"
            # A head is read at the last positions only, too few to calibrate on.
            inner = {
                name: module for name, module in _readers(model).items() if module is not model.get_output_embeddings()
            }
            grams = _gather(model, inner, prompts[kind], _add_gram, kind, progress) if calibrated else {}
            tensors, lost = _blocks(model, wanted, grams, BITS[target.quantization], progress)
            plans[kind] = {name: {**entry, **lost.get(name, {})} for name, entry in plans[kind].items()}
            errors[kind] = sum(entry["error"] for entry in lost.values()) / len(lost)
            measured[kind] = _mean_by_method(lost)
            told = ", ".join(f"{method} {error:.2e}" for method, error in measured[kind].items())
            progress.say(f"  mean error of the {kind} model's weights by method: {told}")
            write_tensors(out / f"{kind}.safetensors", tensors)
        elif target.quantization in WITH_IMPORTANCE:
            squares = _gather(model, _readers(model), prompts[kind], _add_squares, kind, progress)
            write_tensors(out / f"{kind}.safetensors", {name: value.float() for name, value in squares.items()})
    write_json(out / PLAN, {"quantization": target.quantization, "weights": plans})
    found = {"mean_error": errors, "mean_error_by_method": measured}
    return {"quantization": target.quantization, **found}, tuple(fallbacks)


def plan_types(model: Any, target: Target) -> dict[str, dict[str, Any]]:
    """Choose a type for every parameter.

    Args:
        model: transformers model.
        target: Format and quantization.

    Returns:
        Parameter -> ``shape``, ``type``, and ``why`` where it cannot have the target's own type.
    """
    in_blocks = {*_readers(model), *_names(model, model.get_input_embeddings().weight)}
    embedding = _names(model, model.get_input_embeddings().weight)
    wanted, plan = target.quantization, {}
    for name, parameter in model.named_parameters():
        entry: dict[str, Any] = {"shape": list(parameter.shape), "type": "F32"}
        multiple = ROWS.get(wanted, 1)
        if parameter.dim() != 2 or wanted == "F32":
            pass
        elif wanted in BITS and name not in in_blocks:
            entry["why"] = "stays F32, since it is neither the embedding nor a weight that is stored (out, in)"
        elif wanted in BITS and name in embedding and parameter.shape[1] % BLOCK:
            entry["why"] = f"stays F32, since an embedding of width {parameter.shape[1]} is no multiple of {BLOCK}"
        elif parameter.shape[1] % multiple:
            entry["type"] = "other"
            entry["why"] = f"not {wanted}, since its rows of {parameter.shape[1]} are no multiple of {multiple}"
        else:
            entry["type"] = wanted
        plan[name] = entry
    return plan


def misfits(plan: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List the weights that cannot have the target's type.

    Args:
        plan: As from ``plan_types``.

    Returns:
        A line for each.
    """
    return [f"{name}: {entry['why']}" for name, entry in plan.items() if "why" in entry]


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


def _names(model: Any, wanted: Tensor) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter is wanted]


def _readers(model: Any) -> dict[str, nn.Module]:
    """Find the linear that reads each weight, by the weight's name; tied ones have the name they come with first."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(module.weight)]: module for module in model.modules() if isinstance(module, nn.Linear)}


def _blocks(
    model: Any, names: Sequence[str], grams: Mapping[str, Tensor], bits: int, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    lost: dict[str, dict[str, Any]] = {}
    with progress.task("quantize", len(names), "weights") as advance:
        for name in names:
            weight_OI, gram_II = parameters[name].detach(), grams.get(name)
            rounded = {"nearest": round_nearest(weight_OI, bits)}
            if gram_II is not None:
                rounded["gptq"] = round_with_gram(weight_OI, gram_II, bits)
            errors = {method: _error(weight_OI, blocks, gram_II) for method, blocks in rounded.items()}
            # Of two that are equal the plain one, which comes first.
            method = min(errors, key=lambda each: errors[each])
            blocks = rounded[method]
            tensors |= {f"{name}.codes": pack(blocks), f"{name}.scales": blocks.scales_OB}
            lost[name] = {"method": method, "error": errors[method], "errors": errors}
            advance(1)
    return tensors, lost


def _mean_by_method(lost: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Average each way of rounding over the weights that every way was tried on, so that they can be compared."""
    tried = [entry["errors"] for entry in lost.values()]
    most = max(map(len, tried))
    compared = [errors for errors in tried if len(errors) == most]
    return {method: sum(errors[method] for errors in compared) / len(compared) for method in compared[0]}


def _error(weight_OI: Tensor, blocks: Blocks, gram_II: Tensor | None) -> float:
    """Relative squared error of the output on the inputs seen, or of the weight itself."""
    missing_OI = weight_OI - restore(blocks, weight_OI.shape[1])
    if gram_II is None:
        return float(missing_OI.square().sum() / weight_OI.square().sum())
    gram = gram_II.to(weight_OI.dtype)
    return float(((missing_OI @ gram) * missing_OI).sum() / ((weight_OI @ gram) * weight_OI).sum())


Add = Callable[[Moments, str, Tensor], None]


def _add_gram(moments: Moments, name: str, rows_NI: Tensor) -> None:
    moments.add(name, rows_NI)


def _add_squares(moments: Moments, name: str, rows_NI: Tensor) -> None:
    squares_I = rows_NI.double().square().sum(0)
    moments.sums[name] = moments.sums.get(name, torch.zeros_like(squares_I)) + squares_I


@torch.inference_mode()
def _gather(
    model: Any,
    readers: Mapping[str, nn.Module],
    prompts: Sequence[Sequence[int]],
    add: Add,
    kind: str,
    progress: Progress,
) -> dict[str, Tensor]:
    """Run prompts and sum over what each weight multiplies; a head sees the last position of each."""
    moments = Moments()
    device = next(model.parameters()).device
    told = f"inputs of the {kind} model"
    with _watched(readers, moments, add), progress.task(told, len(prompts), "prompts") as advance:
        for prompt in prompts:
            ids_1T = torch.tensor([list(prompt)], device=device)
            positions_1T = torch.arange(len(prompt), device=device)[None]
            flat_forward(model, ids_1T, torch.ones_like(ids_1T), positions_1T, [], 1)
            advance(1)
    return moments.full() if add is _add_gram else moments.sums


@contextmanager
def _watched(readers: Mapping[str, nn.Module], moments: Moments, add: Add) -> Iterator[None]:
    def hook(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda _, args: add(moments, name, args[0].flatten(0, -2))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in readers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

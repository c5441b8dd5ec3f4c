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

from sieve_edge.config import BITS, Target
from sieve_edge.files import write_json
from sieve_edge.model.blocks import Blocks, pack, restore, round_nearest, round_with_gram
from sieve_edge.model.flat import flat_forward
from sieve_edge.model.statistics import Moments
from sieve_edge.model.stored_types import misfit_table, misfits, plan_types, readers, refuse_misfits, rules
from sieve_edge.model.tensors import write_tensors
from sieve_edge.progress import Progress
from sieve_edge.recipe import QuantizeRecipe
from sieve_edge.weight_types import WITH_IMPORTANCE

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
    own_rules = {kind: rules(plan) for kind, plan in plans.items()}
    for kind, lines in own_rules.items():
        for line in lines:
            progress.say(f"  {kind}: {line}")
    errors: dict[str, float] = {}
    measured: dict[str, dict[str, float]] = {}
    taken: dict[str, dict[str, int]] = {}
    for kind, model in models.items():
        wanted = [name for name, entry in plans[kind].items() if entry["type"] == target.quantization]
        if target.quantization in BITS:
            calibrated = recipe.method == "gptq"
            grams = _gather(model, _inner(model), prompts[kind], _add_gram, kind, progress) if calibrated else {}
            tensors, lost = _blocks(model, wanted, grams, BITS[target.quantization], progress)
            plans[kind] = {name: {**entry, **lost.get(name, {})} for name, entry in plans[kind].items()}
            errors[kind] = sum(entry["error"] for entry in lost.values()) / len(lost)
            measured[kind] = _mean_by_method(lost)
            taken[kind] = _count_by_method(lost)
            progress.say(f"  {kind}: {_told(taken[kind], measured[kind])}")
            write_tensors(out / f"{kind}.safetensors", tensors)
        elif target.quantization in WITH_IMPORTANCE:
            squares = _gather(model, readers(model), prompts[kind], _add_squares, kind, progress)
            write_tensors(out / f"{kind}.safetensors", {name: value.float() for name, value in squares.items()})
    # What export may put up with stands here, so that an export is made anew when it changes.
    settled = {"quantization": target.quantization, "allow_fallback": recipe.allow_fallback}
    write_json(out / PLAN, {**settled, "weights": plans})
    found = {"mean_error": errors, "mean_error_by_method": measured, "weights": taken, "rules": own_rules}
    return {"quantization": target.quantization, **found}, tuple(fallbacks)


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


def _inner(model: Any) -> dict[str, nn.Module]:
    """Leave the head out of what reads the inputs: it is read at the last positions only, too few to calibrate on."""
    return {name: module for name, module in readers(model).items() if module is not model.get_output_embeddings()}


def _mean_by_method(lost: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Average each way of rounding over the weights that every way was tried on, so that they can be compared."""
    tried = [entry["errors"] for entry in lost.values()]
    most = max(map(len, tried))
    compared = [errors for errors in tried if len(errors) == most]
    return {method: sum(errors[method] for errors in compared) / len(compared) for method in compared[0]}


def _count_by_method(lost: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Count the weights that each way of rounding was best for, of ways that were best for none too."""
    methods = sorted({method for entry in lost.values() for method in entry["errors"]})
    return {method: sum(entry["method"] == method for entry in lost.values()) for method in methods}


def _told(taken: Mapping[str, int], measured: Mapping[str, float]) -> str:
    counts = ", ".join(f"{count} by {method}" for method, count in taken.items())
    means = ", ".join(f"{error:.2e} by {method}" for method, error in measured.items())
    return f"weights rounded: {counts}; mean error {means}"


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
    watched: Mapping[str, nn.Module],
    prompts: Sequence[Sequence[int]],
    add: Add,
    kind: str,
    progress: Progress,
) -> dict[str, Tensor]:
    """Run prompts and sum over what each weight multiplies; a head sees the last position of each."""
    moments = Moments()
    device = next(model.parameters()).device
    told = f"inputs of the {kind} model"
    with _watched(watched, moments, add), progress.task(told, len(prompts), "prompts") as advance:
        for prompt in prompts:
            ids_1T = torch.tensor([list(prompt)], device=device)
            positions_1T = torch.arange(len(prompt), device=device)[None]
            flat_forward(model, ids_1T, torch.ones_like(ids_1T), positions_1T, [], 1)
            advance(1)
    return moments.full() if add is _add_gram else moments.sums


@contextmanager
def _watched(watched: Mapping[str, nn.Module], moments: Moments, add: Add) -> Iterator[None]:
    def hook(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda _, args: add(moments, name, args[0].flatten(0, -2))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in watched.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Stage: a Hugging Face checkpoint with factored linears, scored again."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from sieve_edge.artifacts import MatrixSpec, PruningPlan
from sieve_edge.errors import ArtifactError
from sieve_edge.files import write_json
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.checkpoint import save_checkpoint
from sieve_edge.model.factored import FactoredLinear, install_
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.levels import SKIPPED, Ranks, stored_params
from sieve_edge.model.load import LoadedModel, shared_copy
from sieve_edge.model.matrices import count_params, linear_params, stacked_bias
from sieve_edge.model.pivots import pivot
from sieve_edge.model.statistics import narrow_side
from sieve_edge.model.widths import narrow_
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.task.exam import RAW, Answers
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example


def fuse(
    loaded: LoadedModel,
    bank: ProjectionBank,
    plan: PruningPlan,
    dense_answers: Answers,
    examiner: Examiner,
    selection: Sequence[Example],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Put the planned factors into the model, save it, reload it, compare, and score it again.

    Reads the model, the bank and the plan; writes a checkpoint (safetensors and JSON) and ``sieve_edge.json``, what
    a runtime needs beside the weights, to ``out``. Starts over when interrupted. Costs one pass over the selection
    split.

    Args:
        loaded: Dense model.
        bank: Its projections.
        plan: Rank of each matrix.
        dense_answers: The dense model's answers to the selection split.
        examiner: Says what is asked.
        selection: Examples that the priors are fitted on.
        recipe: Batch size, device.
        out: Work folder.
        progress: Where progress is shown.

    Returns:
        ``(metrics, fallbacks)`` for the manifest.
    """
    model = shared_copy(loaded.model)
    layout, fallbacks, largest = install_plan_(model, loaded.specs, bank, plan.ranks, plan.storage)
    kept = _check_params(model, loaded, layout, plan.ranks)
    save_checkpoint(model, loaded.tokenizer, layout, loaded.encode(selection[0].prompt), out)
    exam = examiner.exam(selection, loaded.backend, loaded.ends)
    with progress.task("score the fused model", len(selection), "prompts") as advance:
        answers = exam.take(TorchTextModel(model, recipe.main_device), recipe.search.batch_tokens, advance)
    grades = exam.grade(answers)
    scores = {"dense": exam.grade(dense_answers).score, "pruned": grades.score}
    sidecar = {
        **examiner.facts(selection[0]),
        "ends": [loaded.backend.id_to_token(token) for token in loaded.ends],
        "positions": loaded.positions,
        "chat": None if loaded.chat is None else asdict(loaded.chat),
        "prior": {"dense": exam.prior(dense_answers), "pruned": exam.prior(answers)},
        "kept_fraction": kept,
        "selection": scores,
    }
    write_json(out / "sieve_edge.json", sidecar)
    progress.say(f"  the fused model scores {scores['pruned']:.4f} on the selection split")
    raw = exam.grade(answers, RAW).score
    metrics = {
        "kept_fraction": kept,
        "plan": plan.id,
        "refit": plan.refit,
        "selection": {"raw": raw, "corrected": grades.score, "collapsed": grades.collapsed},
        "largest_coefficient": largest,
    }
    return {**metrics, "params": count_params(model)}, tuple(fallbacks)


def install_plan_(
    model: Any, specs: Sequence[MatrixSpec], bank: ProjectionBank, ranks: Ranks, storage: str
) -> tuple[dict[str, Any], list[str], float]:
    """Put a plan's factors into a dense model, in place.

    Args:
        model: Dense model.
        specs: Its matrices.
        bank: Their projections.
        ranks: The plan.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.

    Returns:
        ``(layout for the checkpoint's configuration, fallbacks, largest absolute pivot coefficient)``.
    """
    layout: dict[str, Any] = {}
    fallbacks: list[str] = []
    largest = 0.0
    for spec in specs:
        rank = ranks[spec.name]
        if rank is None:
            continue
        if spec.source is not None:
            layout |= narrow_(model, spec, *bank.at(spec.name, rank))
            continue
        bias_O = None if rank == SKIPPED else stacked_bias(model, spec)
        module, coefficient = factored_matrix(spec, bank, rank, storage, bias_O)
        if storage == "pivoted" and module.storage == "pair" and rank != SKIPPED:
            fallbacks.append(f"{spec.name}: no pivots with small coefficients, stored as a plain pair of rank {rank}")
        largest = max(largest, coefficient)
        install_(model, spec.paths, module.to(model.device))
        layout[spec.name] = layout_entry(spec, module)
    return layout, fallbacks, largest


def factored_matrix(
    spec: MatrixSpec, bank: ProjectionBank, rank: int, storage: str, bias_O: Tensor | None
) -> tuple[FactoredLinear, float]:
    """Make the module of one factored matrix.

    Args:
        spec: The matrix.
        bank: Projections.
        rank: R; 0 for a matrix without output.
        storage: ``"pair"`` or ``"pivoted"``.
        bias_O: Dense bias of the stack, (O,), or None.

    Returns:
        ``(module, largest absolute pivot coefficient)``; the module is a plain pair where no pivots are usable.
    """
    if rank == SKIPPED:
        return FactoredLinear(spec.in_features, spec.part_features, 0).eval(), 0.0
    down_RI, up_RO = bank.at(spec.name, rank)
    side = narrow_side(spec)
    pivoted = pivot(down_RI, up_RO.T, side) if storage == "pivoted" else None
    kind, start = ("pair", 0) if pivoted is None else (f"pivoted_{side}", pivoted.start)
    module = FactoredLinear(spec.in_features, spec.part_features, rank, kind, start, bias=bias_O is not None)
    tensors: dict[str, Tensor] = {"down.weight": down_RI, "up.weight": up_RO.T}
    if pivoted is not None:
        whole = "up.weight" if side == "input" else "down.weight"
        tensors = {"coef.weight": pivoted.coef, whole: pivoted.other}
    if bias_O is not None:
        tensors["bias"] = bias_O
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return module.eval().requires_grad_(False), 0.0 if pivoted is None else pivoted.largest


def layout_entry(spec: MatrixSpec, module: FactoredLinear) -> dict[str, Any]:
    """Describe a factored matrix for the checkpoint's configuration.

    Args:
        spec: The matrix.
        module: Its module.

    Returns:
        ``paths`` and the arguments of ``FactoredLinear``.
    """
    return {
        "paths": list(spec.paths),
        "in_features": module.in_features,
        "part_features": list(module.part_features),
        "rank": module.rank,
        "storage": module.storage,
        "pivot_start": module.pivot_start,
        "bias": module.bias is not None,
    }


def _check_params(model: Any, loaded: LoadedModel, layout: dict[str, Any], ranks: Ranks) -> dict[str, float]:
    """Compare the parameters that are there with the formula's, and say which fractions are kept."""
    linears = linear_params(loaded.specs)
    kept = 0
    for spec in loaded.specs:
        stored = layout.get(spec.name, {}).get("storage", "pair")
        storage = {"pair": "pair", "narrow": "width"}.get(stored, "pivoted")
        kept += stored_params(spec, ranks[spec.name], storage)
    dense, counted = count_params(loaded.model), count_params(model)
    formula = dense - linears - _biases(loaded.model) + _biases(model) + kept
    if counted != formula:
        raise ArtifactError(f"the fused model holds {counted} parameters, the formula gives {formula}")
    return {"linears": kept / linears, "model": counted / dense}


def _biases(model: Any) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith(".bias"))

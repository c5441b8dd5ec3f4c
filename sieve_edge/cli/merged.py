"""``sieve-edge export --merged``: the pruned model for runtimes that know no factored weights."""

import shutil
from typing import Any

import click


def check_merged(target: Any) -> None:
    """Refuse formats whose runtimes need no merging, before anything expensive.

    Args:
        target: The device.

    Raises:
        click.UsageError: If the target's files have no factored weights that a stock runtime lacks.
    """
    if target.storage != "pair" or target.format != "gguf":
        raise click.UsageError(
            f"--merged is for format gguf with storage pair; target {target.name} has format {target.format} with "
            f"storage {target.storage}"
        )


def write_merged(run: Any) -> dict[str, Any]:
    """Write ``merged/`` beside the run's other folders: one GGUF file with dense products, checked in llama.cpp.

    Args:
        run: Build whose fuse stage is done.

    Returns:
        Folder, size in MiB and largest logit difference from the pruned model.
    """
    from sieve_edge.export import quantized_tensors
    from sieve_edge.export.gguf_folder import GgufWeights, write_gguf_folder
    from sieve_edge.export.merged import merge_
    from sieve_edge.model.checkpoint import load_checkpoint
    from sieve_edge.model.stored_types import plan_types
    from sieve_edge.stages import REFERENCE_PROMPTS

    model = load_checkpoint(run.checkpoint(), "cpu")
    readers = merge_(model)
    tensors = quantized_tensors(run.folder("quantize"), "pruned")
    importance = tensors | {name: tensors[factor] for name, factor in readers.items() if factor in tensors}
    prompts = [example.prompt for example in run.splits["selection"][:REFERENCE_PROMPTS]]
    work, folder, pruned = run.root / "merged.part", run.root / "merged", run.folder("export") / "pruned"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    types = {name: entry["types"] for name, entry in plan_types(model, run.target).items()}
    weights = GgufWeights(run.target.quantization, types, importance, run.recipe.quantize.allow_fallback)
    name = f"{run.source.name} merged"
    metrics, changed = write_gguf_folder(model, run.tokenizer, prompts, name, weights, work, lambda _: None)
    (work / "sieve_edge.json").write_bytes((pruned / "sieve_edge.json").read_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
    sizes = {
        kind: (path / "model.gguf").stat().st_size / 2**20 for kind, path in (("merged", folder), ("pruned", pruned))
    }
    run.progress.say(
        f"  merged: {len(readers)} weights multiplied out, {sizes['merged']:.1f} MiB; as large and as slow as the "
        f"dense model (the factored file has {sizes['pruned']:.1f} MiB), for runtimes that know no factored weights"
    )
    difference = metrics["max_logit_difference"]
    return {
        "folder": str(folder),
        "size_mib": sizes["merged"],
        "max_logit_difference": difference,
        "types": metrics["types"],
        "fallbacks": changed,
    }

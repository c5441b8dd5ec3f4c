"""Time tables: what the search's time limits and ``sieve-edge profile`` need of a build."""

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve_edge.artifacts import MANIFEST, read_manifest
from sieve_edge.config import Target
from sieve_edge.errors import ConfigError
from sieve_edge.progress import Progress
from sieve_edge.recipe import QuantizeRecipe
from sieve_edge.resolve import time_problems
from sieve_edge.run import Run

if TYPE_CHECKING:
    from sieve_edge.device.times import TimeTable
    from sieve_edge.search.space import SearchSpace


def profile(run: Run) -> "TimeTable":
    """Measure what every matrix that the search may choose costs on the target, or read what was measured before.

    Args:
        run: The build; only its model is loaded.

    Returns:
        The table.

    Raises:
        ConfigError: If there is no time table for such a target.
    """
    problems = time_problems(run.target)
    if problems:
        raise ConfigError(f"target '{run.target.name}'", problems)
    from sieve_edge.search.assemble import search_space

    shared = run.root.parent / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shared, prefix=".profile-") as folder:
        return table_of(run, search_space(run.loaded, run.target, run.recipe), Path(folder))


def table_of(run: Run, space: "SearchSpace", out: Path) -> "TimeTable":
    """Read or measure the time table of a search space, with the dense model that was exported, if it was.

    Args:
        run: The build.
        space: Search space.
        out: Work folder.

    Returns:
        The table.
    """
    from sieve_edge.device.workload import workload_prompt
    from sieve_edge.search.times import time_table

    prompts = [run.loaded.encode(example.prompt) for example in run.splits["selection"]]
    prompt = workload_prompt(prompts, run.target.workload.prompt_tokens)
    exported, sha256 = run.folder("export"), run.source.sha256()
    manifest = read_manifest(exported) if (exported / MANIFEST).is_file() else None
    stored = {name: getattr(run.target, name) for name in ("format", "runtime", "quantization")}
    usable = manifest and manifest.inputs["model"] == sha256 and stored.items() <= manifest.settings.items()
    written = partial(write_for_timing, run.loaded.model, run.loaded.tokenizer, run.target)
    dense = exported / "dense" if usable else written
    return time_table(space, prompt, run.target, sha256, dense, run.root.parent / "shared", out, run.progress)


def write_for_timing(model: Any, tokenizer: Any, target: Target, folder: Path) -> None:
    """Write a model as the target loads it, to be timed only: nothing is compared, and weights are rounded simply.

    Args:
        model: transformers model on any device, dense or with factored linears.
        tokenizer: Its fast tokenizer.
        target: Format and quantization.
        folder: Existing folder.
    """
    import torch

    from sieve_edge.device.llama import GGUF
    from sieve_edge.export import stored_weights
    from sieve_edge.export.quantize_gguf import quantize_gguf
    from sieve_edge.export.to_gguf import write_gguf
    from sieve_edge.export.to_onnx import write_graph
    from sieve_edge.model.load import on_cpu
    from sieve_edge.quantize import quantize

    model = on_cpu(model)
    if target.format == "onnx":
        with tempfile.TemporaryDirectory() as plan:
            quantize({"timed": model}, {}, target, QuantizeRecipe(method="nearest"), Path(plan), Progress())
            write_graph(model, folder, stored_weights(Path(plan), "timed", target.quantization))
        return
    plain = folder / "plain.gguf.part"
    write_gguf(model, tokenizer, "timed", plain)
    if target.quantization == "F32":
        plain.rename(folder / GGUF)
        return
    quantize_gguf(plain, folder / GGUF, target.quantization, torch.get_num_threads())
    plain.unlink()

"""Dense against smaller models in the runtimes: ``python -m benchmarks.runtime``.

Speed does not depend on what the weights are, so factors are random, at the ranks (or widths) that keep about 0.75, 0.5
and 0.35 of the linears. All forms of one model, runtime, quantization and thread count take turns in one process;
ratios are to the dense form, paired by repeat, with 95 % intervals. ``decode bound`` is the ratio of the files' sizes,
``prompt bound`` that of the multiplications for a prompt's token: what a decode step and a prompt could gain. The 1B
shape is a random Llama.
"""

import functools
import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks._common import Demo, finish, load_demo, machine, options, versions
from sieve_edge.artifacts import MatrixSpec
from sieve_edge.config import Target
from sieve_edge.device.runtimes import WEIGHTS, Runtime
from sieve_edge.device.timing import Timing, median_interval, time_models
from sieve_edge.files import digest, write_json
from sieve_edge.model.factored import FactoredLinear, install_
from sieve_edge.model.levels import Ranks, kept_params, ranks_at
from sieve_edge.model.load import shared_copy
from sieve_edge.model.matrices import find_matrices, linear_params, stacked_weight
from sieve_edge.model.statistics import narrow_side
from sieve_edge.model.widths import narrow_, width_specs
from sieve_edge.protocols import Float64
from sieve_edge.timed import write_for_timing

PROMPT_TOKENS = 128
BILLION: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Setting:
    """One comparison: a model's forms in one runtime and quantization."""

    model: str
    runtime: str
    quantization: str
    multiple: int
    storages: tuple[str, ...]
    repeats: int = 10


SMALL = (
    Setting("SmolLM2", "onnxruntime", "F32", 16, ("pair", "pivoted")),
    Setting("SmolLM2", "onnxruntime", "int8", 32, ("pair", "pivoted")),
    Setting("SmolLM2", "onnxruntime", "int4", 32, ("pair", "pivoted")),
    Setting("SmolLM2", "llama.cpp", "F32", 32, ("pair",)),
    Setting("SmolLM2", "llama.cpp", "Q8_0", 32, ("pair", "width")),
    Setting("SmolLM2", "llama.cpp", "Q4_0", 32, ("pair",)),
)
LARGE = (
    Setting("1B shape", "llama.cpp", "Q8_0", 32, ("pair",), repeats=4),
    Setting("1B shape", "llama.cpp", "Q4_K_M", 256, ("pair",), repeats=4),
    Setting("1B shape", "onnxruntime", "int8", 32, ("pair", "pivoted"), repeats=4),
    Setting("1B shape", "onnxruntime", "int4", 32, ("pair", "pivoted"), repeats=4),
)


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    rows: list[dict[str, Any]] = []
    models = {
        "SmolLM2": lambda: demo.loaded.model,
        "1B shape": lambda: random_model(demo.loaded.model.config.vocab_size),
    }
    makers = {name: functools.cache(make) for name, make in models.items()}
    for setting in (SMALL[0], SMALL[4]) if arguments.quick else (*SMALL, *LARGE):
        rows += _kept_rows(setting, makers[setting.model], demo, arguments)
    finish("runtime", demo, arguments, started, rows)


def _kept_rows(setting: Setting, make: Callable[[], Any], demo: Demo, arguments: Namespace) -> list[dict[str, Any]]:
    """Compare, or read what an interrupted benchmark left."""
    asked = [asdict(setting), arguments.quick, arguments.threads, versions(), machine()]
    file = Path("runs") / "benchmark-runtime" / f"{digest(asked)[:16]}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, _compare(setting, make(), demo, arguments))
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def _compare(setting: Setting, model: Any, demo: Demo, arguments: Namespace) -> list[dict[str, Any]]:
    rows, tokenizer = [], demo.loaded.tokenizer
    factors = (0.5,) if arguments.quick else (0.75, 0.5, 0.35)
    decode_tokens, repeats = (8, 6) if arguments.quick else (16, setting.repeats)
    rng = np.random.default_rng(0)
    prompt = rng.integers(10, min(1000, len(tokenizer)), PROMPT_TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        kept = {}
        for name, fraction, form in forms_of(model, setting, factors):
            kept[name] = fraction
            write_form(form, tokenizer, setting, demo.target, Path(folder) / name)
        for threads in (arguments.threads,) if arguments.quick else (1, 2):
            runtime = Runtime(setting.runtime, threads)
            models = {name: runtime.open(Path(folder) / name, 2 * (PROMPT_TOKENS + decode_tokens)) for name in kept}
            timings = time_models(models, dict.fromkeys(kept, prompt), 1, decode_tokens, repeats, rng)
            dense_mib = _mib(Path(folder) / "dense")
            for name, fraction in kept.items():
                mib = _mib(Path(folder) / name)
                facts: dict[str, Any] = {"model": setting.model, "runtime": setting.runtime}
                facts |= {
                    "weights": setting.quantization,
                    "threads": threads,
                    "form": name,
                    "kept": fraction,
                    "MiB": mib,
                }
                speeds = _speeds(timings["dense"], timings[name], decode_tokens)
                rows.append(facts | speeds | _bounds(model, fraction, dense_mib / mib))
            del models
    return rows


def _speeds(dense: Timing, timing: Timing, decode_tokens: int) -> dict[str, Any]:
    def decode_ms(measured: Timing) -> Float64:
        steps_ms: Float64 = np.asarray(measured.token_samples_ms).reshape(-1, decode_tokens)
        return steps_ms @ np.ones(decode_tokens)

    ratio, low, high = median_interval(decode_ms(dense) / decode_ms(timing), np.random.default_rng(0))
    prompt_low, prompt_high = timing.speed_ratio_interval95
    return {
        "prompt tok/s": timing.prompt_tokens_per_s,
        "decode tok/s": timing.tokens_per_s,
        "prompt ratio": timing.speed_ratio,
        "prompt interval": f"{prompt_low:.2f}-{prompt_high:.2f}",
        "decode ratio": ratio,
        "decode interval": f"{low:.2f}-{high:.2f}",
    }


def _bounds(model: Any, kept: float, sizes: float) -> dict[str, float]:
    linears = linear_params(find_matrices(model, model.config.model_type))
    # The head multiplies once for a whole prompt.
    head = model.get_output_embeddings().weight.numel() / PROMPT_TOKENS
    return {"prompt bound": (linears + head) / (kept * linears + head), "decode bound": sizes}


def forms_of(model: Any, setting: Setting, factors: tuple[float, ...]) -> Iterator[tuple[str, float, Any]]:
    """Make the forms that are compared.

    Args:
        model: Dense model.
        setting: Storages and multiples of ranks.
        factors: Fractions of each matrix that smaller forms keep.

    Yields:
        Name, kept fraction of the linears, and model: the dense one, then the smaller ones.
    """
    yield "dense", 1.0, model
    plain = find_matrices(model, model.config.model_type)
    for storage in setting.storages:
        specs = width_specs(plain, model.config) if storage == "width" else tuple(plain)
        for factor in factors:
            ranks = ranks_at(specs, factor, storage, setting.multiple)
            form = shared_copy(model)
            shrink_(form, specs, ranks, storage)
            yield f"{storage} {factor}", kept_params(specs, ranks, storage) / linear_params(specs), form


def shrink_(model: Any, specs: tuple[MatrixSpec, ...], ranks: Ranks, storage: str) -> None:
    """Give matrices smaller forms with random weights, which is enough to time them.

    Args:
        model: Model of its own; changed in place.
        specs: Its matrices.
        ranks: Matrix -> rank, None for dense.
        storage: ``"pair"``, ``"pivoted"`` or ``"width"``.
    """
    for spec in specs:
        rank = ranks[spec.name]
        if rank is None:
            continue
        if storage == "width":
            first_RI = torch.eye(spec.in_features)[:rank]
            narrow_(model, spec, first_RI, stacked_weight(model, spec)[:, :rank].T)
        else:
            kind = "pair" if storage == "pair" else f"pivoted_{narrow_side(spec)}"
            # In the middle, where pivots usually are, and where they cost most.
            start = {"pivoted_input": spec.in_features, "pivoted_output": spec.out_features}.get(kind, rank) - rank
            linear = FactoredLinear(spec.in_features, spec.part_features, rank, kind, start // 2)
            install_(model, spec.paths, linear)
    model.requires_grad_(False)


def write_form(model: Any, tokenizer: Any, setting: Setting, target: Target, folder: Path) -> None:
    """Write a form as its runtime loads it.

    Args:
        model: The form.
        tokenizer: Its tokenizer.
        setting: Runtime and quantization.
        target: Any target; its other fields stay.
        folder: New folder.
    """
    folder.mkdir()
    format_ = "onnx" if setting.runtime == "onnxruntime" else "gguf"
    wanted = target.model_copy(update={"format": format_, "quantization": setting.quantization})
    write_for_timing(model, tokenizer, wanted, folder)


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob(WEIGHTS)) / 2**20


def random_model(vocab_size: int) -> Any:
    """Make the 1B shape.

    Args:
        vocab_size: Tokens.

    Returns:
        transformers model with random weights.
    """
    config = AutoConfig.for_model("llama", **BILLION, vocab_size=vocab_size)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()

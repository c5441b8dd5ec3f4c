"""Where a decode step and a prompt spend their time, by operator: ``python -m benchmarks.operators``.

For the comparisons of ``benchmarks.runtime`` that stay furthest below their bounds: the same forms, in ONNX Runtime by
its own profiler, in llama.cpp by a callback around every operator of a graph. That callback makes each operator start
alone, which llama.cpp otherwise does not: the time of an operator that computes nothing (a view) is taken off each.
"""

import ctypes
import gc
import importlib
import json
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks._common import Demo, finish, load_demo, options
from benchmarks.runtime import PROMPT_TOKENS, Setting, forms_of, random_model, write_form
from sieve_edge.device.runtimes import Runtime
from sieve_edge.device.timing import timed_decode, timed_prefill

DECODE_STEPS = 8
PROFILED = (
    (Setting("SmolLM2", "onnxruntime", "int8", 32, ("pair", "pivoted")), 0.5),
    (Setting("SmolLM2", "llama.cpp", "Q8_0", 32, ("pair", "width")), 0.5),
    (Setting("1B shape", "llama.cpp", "Q4_K_M", 256, ("pair",)), 0.35),
    (Setting("1B shape", "onnxruntime", "int4", 32, ("pair", "pivoted")), 0.35),
)
_OP_OFFSET = 80
"""Of ``op`` in ``struct ggml_tensor``: type, buffer, ne[4] and nb[4] come before it."""

Times = dict[str, dict[str, float]]
"""Phase (prompt, decode step) -> operator -> ms."""


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    rows: list[dict[str, Any]] = []
    for setting, factor in PROFILED[:2] if arguments.quick else PROFILED:
        small = setting.model == "SmolLM2"
        model = demo.loaded.model if small else random_model(demo.loaded.model.config.vocab_size)
        rows += _rows(setting, factor, model, demo, arguments)
    finish("operators", demo, arguments, started, rows)


def _rows(setting: Setting, factor: float, model: Any, demo: Demo, arguments: Namespace) -> list[dict[str, Any]]:
    rows = []
    profile = _profile_onnx if setting.runtime == "onnxruntime" else _profile_llama
    prompt = np.random.default_rng(0).integers(10, 1000, PROMPT_TOKENS).tolist()
    for name, kept, form in forms_of(model, setting, (factor,)):
        with tempfile.TemporaryDirectory() as folder:
            write_form(form, demo.loaded.tokenizer, setting, demo.target, Path(folder) / "model")
            runtime = Runtime(setting.runtime, arguments.threads)
            found = profile(runtime, Path(folder) / "model", prompt)
        facts: dict[str, Any] = {"model": setting.model, "runtime": setting.runtime}
        facts["weights"] = setting.quantization
        facts |= {"threads": arguments.threads, "form": name, "kept": kept}
        for phase, operators in found.items():
            largest = sorted(operators.items(), key=lambda item: -item[1])
            rows += [{**facts, "phase": phase, "operator": operator, "ms": ms} for operator, ms in largest]
    return rows


def _run(model: Any, prompt: list[int], mark: Callable[[str], None]) -> None:
    """Run a prompt and decode, twice; the first round warms up."""
    for counts in (False, True):
        mark("prompt" if counts else "")
        _, token, past = timed_prefill(model, prompt)
        mark("decode step" if counts else "")
        timed_decode(model, token, past, len(prompt), DECODE_STEPS)
    mark("")


def _profile_onnx(runtime: Runtime, folder: Path, prompt: list[int]) -> Times:
    onnxruntime = importlib.import_module("onnxruntime")

    class Profiled(onnxruntime.SessionOptions):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(folder / "profile")

    with patch.object(onnxruntime, "SessionOptions", Profiled):
        model: Any = runtime.open(folder, 0)
    phases: list[str] = []
    _run(model, prompt, phases.append)
    del model
    # The profile is complete when the session is gone.
    gc.collect()
    events = json.loads(next(folder.glob("profile*")).read_text(encoding="utf-8"))
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    names = [*([""] * (1 + DECODE_STEPS)), "prompt", *(["decode step"] * DECODE_STEPS)]
    found: Times = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            place = next(index for index, (start, end) in enumerate(runs) if start <= event["ts"] < end)
            if names[place]:
                found[names[place]][event["args"]["op_name"]] += event["dur"] / 1e3
    return _per_step(found)


def _profile_llama(runtime: Runtime, folder: Path, prompt: list[int]) -> Times:
    api = importlib.import_module("llama_cpp")
    library = ctypes.CDLL(str(next((Path(str(api.__file__)).parent / "lib").glob("libggml-base.*"))))
    library.ggml_op_name.restype, library.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    spent: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    phase, begun = [""], [0.0]

    def around(tensor: int, ask: bool, _: Any) -> bool:
        if ask:
            begun[0] = time.perf_counter()
        else:
            operator = ctypes.c_int.from_address(tensor + _OP_OFFSET).value
            spent[phase[0]][library.ggml_op_name(operator).decode()].append(time.perf_counter() - begun[0])
        return True

    callback = api.llama_cpp.ggml_backend_sched_eval_callback(around)
    with _default_params(api, callback):
        model = runtime.open(folder, 2 * (PROMPT_TOKENS + DECODE_STEPS))
    _run(model, prompt, lambda name: phase.__setitem__(0, name))
    found: Times = {}
    for name in ("prompt", "decode step"):
        idle = min(
            (float(np.median(spent[name][kind])) for kind in ("VIEW", "RESHAPE") if kind in spent[name]), default=0
        )
        found[name] = {kind: 1e3 * sum(max(one - idle, 0.0) for one in all_) for kind, all_ in spent[name].items()}
    return _per_step(found)


@contextmanager
def _default_params(api: Any, callback: Any) -> Iterator[None]:
    """Let contexts that are made meanwhile call back around every operator."""
    original = api.llama_context_default_params

    def changed() -> Any:
        params = original()
        params.cb_eval = callback
        return params

    with patch.object(api, "llama_context_default_params", changed):
        yield


def _per_step(found: Times) -> Times:
    steps = {"prompt": 1, "decode step": DECODE_STEPS}
    return {phase: {name: ms / steps[phase] for name, ms in times.items()} for phase, times in found.items()}


if __name__ == "__main__":
    main()

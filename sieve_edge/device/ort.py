"""Graphs on ONNX Runtime, ``TextModel`` first; the only importer of onnxruntime, and only when it is used.

Dimension key: B batch, P past tokens, T new tokens, H key/value heads, D head width, V vocabulary.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.files import digest, file_sha256

GRAPH = "model.onnx"
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PAST = "past_key_values."
_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_KEEP = "logits_to_keep"
_LOG_ERRORS = 3


class OrtTextModel:
    """An exported folder in ONNX Runtime, behind the ``TextModel`` protocol."""

    def __init__(self, folder: Path, threads: int, provider: str = _CPU, half: bool = False) -> None:
        """Load the graph and its weights.

        A file that is missing, broken or lacks an input or output of the convention is an ``ArtifactError``; a
        missing onnxruntime, or one without the provider, is an ``EnvironmentMissing``.

        Args:
            folder: Exported folder with ``model.onnx``.
            threads: Threads of one operator; operators run one after another.
            provider: Execution provider that must run the graph.
            half: Whether TensorRT may compute in float16.
        """
        self._session = _open(folder / GRAPH, threads, provider, half)[0]
        self._source = folder / GRAPH
        inputs = {item.name: item for item in self._session.get_inputs()}
        self._past_names = [name for name in inputs if name.startswith(_PAST)]
        self._output_names = ["logits", *(name.replace(_PAST, "present.") for name in self._past_names)]
        self._check_names(list(inputs))
        self._past_shapes = [self._heads_and_width(inputs[name]) for name in self._past_names]
        self._can_keep = _KEEP in {item.name for item in self._session.get_overridable_initializers()}

    @property
    def providers(self) -> list[str]:
        """Execution providers of the session, the first one first; which of them runs an operator is not told."""
        found: list[str] = self._session.get_providers()
        return found

    def forward(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        past: Sequence[Any],
        logits_to_keep: int,
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """Run the graph; see ``TextModel``.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T).
            position_ids: (B, T).
            past: Present of an earlier call, float32 arrays (B, H, P, D), or empty.
            logits_to_keep: Last positions whose logits are wanted; 0 for all.

        Returns:
            ``(logits (B, kept, V), present)``.
        """
        feeds: dict[str, Any] = dict(zip(_TOKEN_INPUTS, (input_ids, attention_mask, position_ids), strict=True))
        feeds.update(zip(self._past_names, past or self._empty_past(len(input_ids)), strict=True))
        if logits_to_keep and self._can_keep:
            feeds[_KEEP] = np.asarray([logits_to_keep], dtype=np.int64)
        logits, *present = self._session.run(self._output_names, feeds)
        return logits[:, -logits_to_keep:], present

    def repeat(self, past: Sequence[Any], batch: int) -> list[Any]:
        """Give every row of a batch the same past.

        Args:
            past: Present of a call with one row.
            batch: B.

        Returns:
            Copies with B rows.
        """
        return [np.repeat(array, batch, axis=0) for array in past]

    def _empty_past(self, batch: int) -> list[NDArray[np.float32]]:
        return [np.zeros((batch, heads, 0, width), dtype=np.float32) for heads, width in self._past_shapes]

    def _check_names(self, inputs: list[str]) -> None:
        outputs = {item.name for item in self._session.get_outputs()}
        wanted = [*_TOKEN_INPUTS, f"{_PAST}0.key"]
        missing = [name for name in wanted if name not in inputs]
        missing += [name for name in self._output_names if name not in outputs]
        unknown = [name for name in inputs if name not in _TOKEN_INPUTS and name not in self._past_names]
        if missing or unknown:
            raise ArtifactError(f"{self._source}: not a decoder with a cache; missing {missing}, unknown {unknown}")

    def _heads_and_width(self, item: Any) -> tuple[int, int]:
        if len(item.shape) != 4 or not isinstance(item.shape[1], int) or not isinstance(item.shape[3], int):
            raise ArtifactError(f"{self._source}: input {item.name} is {item.shape}, heads and width must be numbers")
        return item.shape[1], item.shape[3]


class OrtGraph:
    """A graph held in memory whose inputs are all given the same array, where the provider computes, once for all."""

    def __init__(self, graph: bytes, threads: int, provider: str = _CPU, half: bool = False) -> None:
        """Load the graph; errors are those of ``OrtTextModel``.

        Args:
            graph: Serialized model, weights included.
            threads: Threads of one operator; operators run one after another.
            provider: Execution provider that must run the graph.
            half: Whether TensorRT may compute in float16.
        """
        self._session, self._runtime = _open(graph, threads, provider, half)
        # On the CPU a bound value borrows the array's memory, so both have to stay.
        self._bound: list[Any] = []
        self._device = "cpu" if provider == _CPU else "cuda"

    def bind(self, array: NDArray[np.float32]) -> Callable[[], None]:
        """Give every input an array.

        Args:
            array: What they are given.

        Returns:
            Function that runs the graph on it and waits until it is done; outputs are left where they are.
        """
        binding = self._session.io_binding()
        value = self._runtime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        for item in self._session.get_inputs():
            binding.bind_ortvalue_input(item.name, value)
        for item in self._session.get_outputs():
            binding.bind_output(item.name, "cpu")
        self._bound.append((value, array))
        return partial(self._run, binding)

    def _run(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


def _open(graph: Path | bytes, threads: int, provider: str, half: bool) -> tuple[Any, Any]:
    """Make a session of a file or of a serialized model; returns it and the onnxruntime module."""
    extra = "onnx" if provider == _CPU else "onnx-gpu"
    # The two builds share their files, so the other one has to go first.
    fix = f"run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'sieve-edge[{extra}]'"
    # It would keep an identifier and a database in the user's cache, on a device that has to be left as it was found.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EnvironmentMissing(f"onnxruntime cannot be imported ({error}); {fix}") from error
    if provider not in runtime.get_available_providers():
        raise EnvironmentMissing(f"this onnxruntime has no {provider}; {fix}")
    place = graph if isinstance(graph, Path) else "graph in memory"
    if isinstance(graph, Path) and not graph.is_file():
        raise ArtifactError(f"{place}: missing; run the export again")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _LOG_ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = _providers(provider, graph, half, runtime.__version__)
    if provider != _CPU:
        _load_libraries(runtime)
    try:
        source = str(graph) if isinstance(graph, Path) else graph
        session = runtime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's own errors share no narrower base
        raise ArtifactError(f"{place}: onnxruntime cannot load it ({' '.join(str(error).split())[:300]})") from error
    # A provider that fails to start is replaced with a log line only: what the session says is what counts.
    if provider not in session.get_providers():
        raise EnvironmentMissing(f"{provider} does not start here, got {session.get_providers()}; {fix}")
    return session, runtime


def _providers(provider: str, graph: Path | bytes, half: bool, version: str) -> list[Any]:
    """List the providers of a session with their options; TensorRT leaves the operators it cannot run to CUDA."""
    if provider != _TENSORRT:
        return [provider]
    options: dict[str, Any] = {"trt_fp16_enable": half}
    # Every job is a process of its own, and making an engine takes minutes.
    if isinstance(graph, Path) and os.access(graph.parent, os.W_OK):
        # ONNX Runtime names an engine by the graph's structure: one of other weights would be taken for this one's.
        files = sorted(graph.parent.glob(f"{graph.stem}.*"))
        key = digest([[file_sha256(file) for file in files], half, version])[:16]
        engines = graph.parent / f"tensorrt-{key}"
        engines.mkdir(exist_ok=True)
        options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(engines)}
    return [(_TENSORRT, options), _CUDA]


def _load_libraries(runtime: Any) -> None:
    """Find CUDA's libraries in NVIDIA's wheels, where this onnxruntime knows how to (1.21 and newer)."""
    preload = getattr(runtime, "preload_dlls", None)
    if preload is not None:
        # It prints what it does not find, and standard output ends with a result.
        with contextlib.redirect_stdout(sys.stderr):
            preload()

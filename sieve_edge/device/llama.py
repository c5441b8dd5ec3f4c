"""A GGUF file on llama.cpp, behind the ``TextModel`` protocol; the only importer of llama_cpp, and only when used.

Dimension key: B batch, P past tokens, T new tokens, V vocabulary.
"""

import ctypes
import importlib
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sieve_edge.device.llama_refusals import check_format, refuse
from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.model.gguf_header import FORMAT_KEY

GGUF = "model.gguf"
MAX_SEQUENCES = 256
"""llama.cpp's own limit of sequences in one context."""

_BATCH_TOKENS = 2048
_ERROR_LEVEL = 4
_VERSION_BYTES = 32
_FIX_MISSING = "run: make runtime, or pip install 'sieve-edge[gguf]' for files that stock llama.cpp loads"


@dataclass(frozen=True)
class _Past:
    """A view of sequences in the context's memory; what was added after ``lengths`` does not belong to it."""

    rows: "_Rows"
    lengths: tuple[int, ...]


@dataclass(eq=False)
class _Rows:
    """Sequences that one batch owns; given back with the next call after nothing refers to them any more."""

    ids: tuple[int, ...]
    filled: tuple[int, ...]


class LlamaTextModel:
    """A GGUF file in llama.cpp.

    The past lives in the context's memory, not in the caller's: continuing one past twice takes back what the first
    continuation added, so the present that it returned is void. ``repeat`` copies.
    """

    def __init__(self, file: Path, threads: int, context_tokens: int, cache: str = "f16", gpu_layers: int = 0) -> None:
        """Load the model and make a context.

        Args:
            file: GGUF file.
            threads: Threads for prompts and for single tokens alike.
            context_tokens: Tokens that all sequences together may hold.
            cache: Type of the key/value cache, ``"f16"`` (llama.cpp's default) or ``"f32"``.
            gpu_layers: Layers that the GPU runs.

        Raises:
            ArtifactError: If the file is missing or cannot be loaded.
            EnvironmentMissing: If the GPU is asked for and this llama.cpp has none.
        """
        self._api = runtime()
        self._log = RuntimeLog(self._api)
        if not file.is_file():
            raise ArtifactError(f"{file}: missing; run the export again")
        if gpu_layers and not self._api.llama_supports_gpu_offload():
            raise EnvironmentMissing(
                f"gpu_layers {gpu_layers}: this llama.cpp runs on no GPU; build one with ACCELERATOR=cuda make runtime"
            )
        model_params = self._api.llama_model_default_params()
        model_params.n_gpu_layers = gpu_layers
        self._model = self._api.llama_model_load_from_file(str(file).encode(), model_params)
        if not self._model:
            refuse(file, self._log.text(), self._api.__version__)
        weakref.finalize(self, self._api.llama_model_free, self._model)
        self._check_format(file)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._tokens_V = self._api.llama_vocab_n_tokens(self._vocab)
        params = self._api.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = min(context_tokens, _BATCH_TOKENS)
        params.n_outputs_max_per_seq = 0
        # llama.cpp keeps room for the logits of every sequence, in a batch that the context must hold.
        sequences = params.n_seq_max = min(MAX_SEQUENCES, context_tokens)
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = {"f32": self._api.GGML_TYPE_F32, "f16": self._api.GGML_TYPE_F16}[cache]
        if cache == "f32":
            # Flash attention rounds inside.
            params.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.providers = self._placed(gpu_layers)
        self._batch_tokens = params.n_batch
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            raise ArtifactError(
                f"{file}: llama.cpp cannot make a context of {context_tokens} tokens: {self._log.text()}"
            )
        # Finalizers run in the opposite order, so the context goes before its model.
        weakref.finalize(self, self._api.llama_free, self._context)
        self._memory = self._api.llama_get_memory(self._context)
        self._free = set(range(sequences))
        self._left: deque[int] = deque()

    def _placed(self, gpu_layers: int) -> list[str]:
        """Say where layers were asked to run: llama.cpp does not tell where it put them.

        It takes any larger number for all of them, of which the output is one more.
        """
        layers = min(gpu_layers, self._api.llama_model_n_layer(self._model) + 1)
        return [f"{layers} layers asked for on the GPU", "CPU"] if layers else ["CPU"]

    def forward(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        past: Sequence[Any],
        logits_to_keep: int,
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """Run the model; see ``TextModel``.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T); what it masks is not run, and its logits are zeros.
            position_ids: (B, T).
            past: Present of an earlier call, or empty.
            logits_to_keep: Last positions whose logits are wanted; 0 for all.

        Returns:
            ``(logits (B, kept, V), present)``.
        """
        self._reclaim()
        batch, width = input_ids.shape
        view: _Past = past[0] if past else self._new(batch)
        self._take_back(view)
        real_BT = attention_mask[:, -width:].astype(bool)
        kept = logits_to_keep or width
        first = width - kept
        wanted_BT = real_BT & (np.arange(width) >= first)
        logits = np.zeros((batch, kept, self._tokens_V), dtype=np.float32)
        # Row by row, so that a part that is too long for one call ends between tokens of one row.
        places = np.argwhere(real_BT)
        sequences = np.asarray(view.rows.ids, dtype=np.int32)[places[:, 0]]
        for start in range(0, len(places), self._batch_tokens):
            part = slice(start, start + self._batch_tokens)
            rows, columns = places[part].T
            outputs = wanted_BT[rows, columns]
            found = self._decode(input_ids[rows, columns], position_ids[rows, columns], sequences[part], outputs)
            logits[rows[outputs], columns[outputs] - first] = found
        lengths = tuple(int(length) for length in np.asarray(view.lengths) + real_BT.sum(1))
        view.rows.filled = lengths
        return logits, [_Past(view.rows, lengths)]

    def repeat(self, past: Sequence[Any], batch: int) -> list[Any]:
        """Give every row of a batch the same past.

        Args:
            past: Present of a call with one row.
            batch: B.

        Returns:
            Copies with B rows; cells of the cache are shared, not copied.
        """
        self._reclaim()
        view: _Past = past[0]
        copies = self._new(batch)
        for sequence in copies.rows.ids:
            self._api.llama_memory_seq_cp(self._memory, view.rows.ids[0], sequence, 0, view.lengths[0])
        copies.rows.filled = view.lengths * batch
        return [_Past(copies.rows, view.lengths * batch)]

    def encode(self, text: str) -> list[int]:
        """Tokenize a prompt as the model's own tokenizer does, with the start token where the file says so.

        Args:
            text: A prompt; the text of a chat's special tokens becomes these tokens.

        Returns:
            Token ids.
        """
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)
        return list(ids[:count])

    def _check_format(self, file: Path) -> None:
        text = ctypes.create_string_buffer(_VERSION_BYTES)
        if self._api.llama_model_meta_val_str(self._model, FORMAT_KEY.encode(), text, len(text)) > 0:
            check_format(file, int(text.value))

    def _new(self, batch: int) -> _Past:
        if batch > len(self._free):
            raise ArtifactError(f"llama.cpp: a batch of {batch} rows, only {len(self._free)} sequences are free")
        ids = tuple(sorted(self._free)[:batch])
        self._free.difference_update(ids)
        rows = _Rows(ids, (0,) * batch)
        # A past may end in any thread; llama.cpp is called by the one that runs the model.
        weakref.finalize(rows, self._left.extend, ids)
        return _Past(rows, (0,) * batch)

    def _reclaim(self) -> None:
        while self._left:
            sequence = self._left.popleft()
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self._free.add(sequence)

    def _take_back(self, view: _Past) -> None:
        for sequence, length, filled in zip(view.rows.ids, view.lengths, view.rows.filled, strict=True):
            if filled > length:
                self._api.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def _decode(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64], sequences: NDArray[np.int32], outputs: Any
    ) -> NDArray[np.float32]:
        """Run tokens; logits of those that are asked for, (N, V)."""
        api, count = self._api, len(ids)
        tokens, places = ids.astype(np.int32), positions.astype(np.int32)
        owners, one = np.ascontiguousarray(sequences), np.ones(count, dtype=np.int32)
        pointers = (owners.ctypes.data + owners.itemsize * np.arange(count)).astype(np.uintp)
        flags = outputs.astype(np.int8)
        batch = api.llama_batch()
        batch.n_tokens = count
        for name, array in (
            ("token", tokens),
            ("pos", places),
            ("n_seq_id", one),
            ("seq_id", pointers),
            ("logits", flags),
        ):
            field = dict(api.llama_batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, field))
        code = api.llama_decode(self._context, batch)
        if code != 0:
            raise ArtifactError(f"llama.cpp: decode of {count} tokens failed with {code}: {self._log.text()}")
        found = int(flags.sum())
        if not found:
            return np.zeros((0, self._tokens_V), dtype=np.float32)
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (found, self._tokens_V)).copy()


def runtime() -> Any:
    """Import llama_cpp.

    Returns:
        The module.

    Raises:
        EnvironmentMissing: If it is not installed.
    """
    try:
        return importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise EnvironmentMissing(f"llama-cpp-python cannot be imported ({error}); {_FIX_MISSING}") from error


class RuntimeLog:
    """Keeps what llama.cpp says of errors, and keeps all of it off the terminal; llama.cpp has one for a process."""

    _lines: ClassVar[list[str]] = []
    _callback: ClassVar[Any] = None

    def __init__(self, api: Any) -> None:
        """Forget what was said before.

        Args:
            api: What ``runtime`` returned.
        """
        self._lines.clear()
        if RuntimeLog._callback is None:
            RuntimeLog._callback = api.llama_log_callback(RuntimeLog._hear)
            api.llama_log_set(RuntimeLog._callback, ctypes.c_void_p(0))

    @staticmethod
    def _hear(level: int, text: bytes, _: Any) -> None:
        if level >= _ERROR_LEVEL:
            RuntimeLog._lines.append(text.decode(errors="replace").strip())

    def text(self) -> str:
        """Say what went wrong.

        Returns:
            The last error lines.
        """
        return "; ".join(line for line in self._lines[-3:] if line)[:400] or "no message"

"""Loads a dense model: the only importer of transformers' Auto classes for base models."""

import contextlib
import copy
import functools
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.errors import EnvironmentMissing, ModelError
from sieve_edge.model.matrices import find_matrices, known_architectures
from sieve_edge.model.source import ModelSource
from sieve_edge.protocols import Chat


@dataclass(frozen=True)
class LoadedModel:
    """A dense model in memory.

    Attributes:
        source: Where it came from.
        model: transformers model in evaluation mode, float32.
        tokenizer: Its fast tokenizer.
        specs: Its matrices.
    """

    source: ModelSource
    model: Any
    tokenizer: Any
    specs: tuple[MatrixSpec, ...]

    @property
    def backend(self) -> Any:
        """Its tokenizer as every runtime has it: a ``tokenizers.Tokenizer``."""
        return self.tokenizer.backend_tokenizer

    @property
    def positions(self) -> int | None:
        """Most tokens that it can hold; None for any number."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def chat(self) -> Chat | None:
        """How its chats are written; None without a template."""
        return chat_of(self.tokenizer)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's, and those that the model's generation settings name."""
        named = self.model.generation_config.eos_token_id
        several = named if isinstance(named, list) else [named]
        return tuple(sorted({token for token in (self.tokenizer.eos_token_id, *several) if token is not None}))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokenize one text as every runtime will.

        Args:
            text: Any text.
            special: Whether the model's start token is added, where it has one.

        Returns:
            Token ids.
        """
        ids: list[int] = self.backend.encode(text, add_special_tokens=special).ids
        return ids


def load_model(source: ModelSource, device: str) -> LoadedModel:
    """Load a dense model in float32.

    Args:
        source: What ``find_model`` returned.
        device: Torch device.

    Returns:
        The model, its tokenizer and its matrices.

    Raises:
        ModelError: If files are broken, the family is unknown, or weights are not finite.
    """
    extra = _gguf_argument(source)
    quiet()
    # transformers parses a GGUF file anew for the configuration, the tokenizer and the weights; once is enough.
    with mock.patch("gguf.GGUFReader", functools.lru_cache(maxsize=1)(gguf.GGUFReader)):
        config = _load_config(source, extra)
        model, tokenizer = _load_parts(source, config, extra)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"model '{source.reference}': its tokenizer has no fast version (tokenizer.json)")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"model '{source.reference}': weight {name} has values that are not finite")
    model = model.to(device).eval().requires_grad_(False)
    specs = tuple(find_matrices(model, config.model_type))
    return LoadedModel(source, model, tokenizer, specs)


def check_devices(devices: Sequence[str]) -> None:
    """Refuse devices that torch cannot use here, before anything expensive.

    Args:
        devices: Torch devices.

    Raises:
        EnvironmentMissing: If there is no such device, or this torch was built without it.
    """
    for device in devices:
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, ImportError) as error:
            raise EnvironmentMissing(
                f"device {device}: torch {torch.__version__} cannot use it here ({_first_line(error)}); run: python -m "
                "torch.utils.collect_env, which lists what it can, or leave --device out"
            ) from error


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint's own tokenizer.

    Args:
        folder: Checkpoint folder.

    Returns:
        Fast tokenizer that reads ``tokenizer.json`` as it stands.
    """
    return PreTrainedTokenizerFast.from_pretrained(folder)


def read_chat(source: ModelSource) -> Chat:
    """Read how a model wants its chats written; reads its tokenizer, not its weights.

    Args:
        source: What ``find_model`` returned.

    Returns:
        Its chat template and start token.

    Raises:
        ModelError: If it has no chat template.
    """
    quiet()
    try:
        tokenizer = _tokenizer_class(source).from_pretrained(source.folder, **_gguf_argument(source))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model '{source.reference}': cannot read its tokenizer ({_first_line(error)})") from error
    chat = chat_of(tokenizer)
    if chat is None:
        raise ModelError(
            f"model '{source.reference}': has no chat template, so a task with messages cannot be asked; give the task "
            "a prompt, or take the model's instruct version"
        )
    return chat


def chat_of(tokenizer: Any) -> Chat | None:
    """Say how a model's chats are written.

    Args:
        tokenizer: Its fast tokenizer.

    Returns:
        Template and start token; None without a template.
    """
    if not tokenizer.chat_template:
        return None
    added = tokenizer.backend_tokenizer.encode("").ids
    start, end = tokenizer.bos_token or "", tokenizer.eos_token or ""
    return Chat(tokenizer.chat_template, start, end, added[:1] == [tokenizer.bos_token_id])


def _gguf_argument(source: ModelSource) -> dict[str, Any]:
    return {"gguf_file": source.gguf} if source.gguf else {}


def _load_config(source: ModelSource, extra: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.from_pretrained(source.folder, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model '{source.reference}': cannot read its configuration ({_first_line(error)})") from error
    if config.model_type not in known_architectures():
        find_matrices(nn.Module(), config.model_type)
    return config


def _load_parts(source: ModelSource, config: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
    try:
        tokenizer = _tokenizer_class(source).from_pretrained(source.folder, **extra)
        if source.gguf:
            extra = {**extra, "quantization_config": GgufConfig(dequantize=True)}
        # transformers draws a bar of its own for a GGUF, which a log cannot show.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                source.folder, config=config, dtype=torch.float32, attn_implementation="eager", **extra
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model '{source.reference}': cannot load it ({_first_line(error)}); is the download complete?"
        ) from error
    return model, tokenizer


def empty_model(config: Any) -> Any:
    """Make the modules of a model, with nothing in their parameters and buffers; nothing is read or fetched.

    Args:
        config: transformers configuration of a dense model.

    Returns:
        Model on torch's ``meta`` device, of the class and with the attention that ``load_model`` gives.
    """
    quiet()
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def shared_copy(model: Any) -> Any:
    """Copy a model's modules but share its parameters and buffers, so that linears can be replaced in the copy.

    Args:
        model: Any model.

    Returns:
        The copy; costs no memory for weights.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def on_cpu(model: Any) -> Any:
    """Give a model on the CPU, where exports read its weights; a model elsewhere stays there for other stages.

    Args:
        model: Any model.

    Returns:
        The model itself if it is there, else a copy; weights that were tied still are.
    """
    if model.device.type == "cpu":
        return model
    moved: dict[int, Any] = {id(tensor): tensor.cpu() for tensor in model.buffers()}
    moved |= {id(each): nn.Parameter(each.detach().cpu(), each.requires_grad) for each in model.parameters()}
    return copy.deepcopy(model, moved)


def _tokenizer_class(source: ModelSource) -> Any:
    """Choose the class that reads tokenizer.json as it stands, which is what every runtime will read.

    The Auto class may choose the family's own instead, which builds its tokens anew from the vocabulary.
    """
    exact = source.gguf is None and (Path(source.folder) / "tokenizer.json").is_file()
    return PreTrainedTokenizerFast if exact else AutoTokenizer


def quiet() -> None:
    """Keep transformers' warnings and bars off the terminal; the build has its own."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Writes a model as one GGUF file in float32, factor pairs and all, and accounts for every tensor.

A pair stands as ``X.fac_a.weight`` (R, I) and ``X.fac_b.weight`` (O, R) where a dense file has ``X.weight`` (O, I).
What a stack shares is stored once: one fused pair where the architecture's graph takes the stack as one matrix, else a
pair per part of which only the first has ``fac_a``.

Dimension key: O out_features of a part or stack, I in_features, R rank.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from sieve_edge.errors import ModelError
from sieve_edge.export.accounting import check_stored
from sieve_edge.export.gguf_metadata import (
    add_metadata,
    check_config,
    gguf_description,
    metadata,
    narrow_fields,
    rope_factors,
)
from sieve_edge.export.gguf_tokenizer import add_tokenizer
from sieve_edge.files import disk_errors
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.gguf_header import FORMAT_KEY, FORMAT_VERSION
from sieve_edge.model.load import shared_copy
from sieve_edge.model.matrices import known_architectures


def write_gguf(model: Any, tokenizer: Any, name: str, file: Path) -> int:
    """Write a model.

    Args:
        model: transformers model, dense or with factor pairs, float32.
        tokenizer: Its fast tokenizer.
        name: The model's name, for people.
        file: File to write.

    Returns:
        Number of factored matrices as llama.cpp sees them, a fused stack counting once. A family, configuration or
        tokenizer that has no place in a GGUF is a ``ModelError``.
    """
    check_config(model.config, gguf_description(model.config.model_type))
    description, fields = _description(model)
    tensors = dict(gguf_tensors(model, description))
    factored = sum(tensor.endswith(".fac_b.weight") for tensor in tensors)
    with disk_errors(file):
        writer = gguf.GGUFWriter(file, description["architecture"])
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
        if factored:
            writer.add_uint32(FORMAT_KEY, FORMAT_VERSION)
        add_metadata(writer, description["architecture"], fields)
        add_tokenizer(writer, tokenizer, model.config.vocab_size)
        for tensor, value in tensors.items():
            writer.add_tensor(tensor, np.ascontiguousarray(value.detach().float().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    account(file, tensors)
    return factored


def gguf_tensors(model: Any, description: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name every parameter as llama.cpp does, and put its rows in llama.cpp's order.

    Args:
        model: transformers model, dense or with factor pairs.
        description: What its architecture file says of llama.cpp.

    Yields:
        ``(name, tensor)``, each parameter once.

    Raises:
        ModelError: If llama.cpp has no name for a parameter, or a factored matrix is not a pair.
    """
    kinds = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[description["architecture"]], model.config.num_hidden_layers)
    rows = _RowOrder(model, description)
    done: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, FactoredLinear):
            continue
        if module.storage != "pair":
            raise ModelError(f"{path}: storage {module.storage}; a GGUF holds pairs: set the target's storage to pair")
        done.update(id(parameter) for parameter in module.parameters())
        kind, parts = stack_at(model, path)
        fused = description.get("fused", {}).get(kind)
        bases = [_name(names, part) for part in parts]
        if fused and len(parts) > 1:
            bases = [f"{bases[0].rsplit('.', 1)[0]}.{fused}"]
        yield f"{bases[0]}.fac_a.weight", module.down.weight
        ordered = [rows(part, block) for part, block in zip(parts, _split(module.up.weight, module), strict=True)]
        yield from _blocks(bases, "fac_b.weight", ordered)
        if module.bias is not None:
            biases = [rows(part, block) for part, block in zip(parts, _split(module.bias, module), strict=True)]
            yield from _blocks(bases, "bias", biases)
    for path, parameter in model.named_parameters():
        if id(parameter) not in done:
            offset = description.get("norm_offset", 0.0) if path.endswith("norm.weight") else 0.0
            value = rows(path.rsplit(".", 1)[0], parameter)
            yield _name(names, path), value + offset if offset else value
    factors = rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors


def gguf_origins(model: Any) -> dict[str, str]:
    """Say which parameter each matrix of a file is made of; its rows may be some of it, in another order.

    Args:
        model: transformers model, dense or with factor pairs.

    Returns:
        llama.cpp's name -> the parameter's name in the model.
    """
    described = shared_copy(model)
    parameters = [name for name, parameter in model.named_parameters() if parameter.dim() == 2]
    for number, name in enumerate(parameters):
        # Every number of a parameter tells which one it is, so rows may be split, joined and put in any order.
        owner, _, attribute = name.rpartition(".")
        marked_OI = torch.tensor(float(number)).expand(model.get_parameter(name).shape)
        setattr(described.get_submodule(owner), attribute, nn.Parameter(marked_OI, requires_grad=False))
    if model.get_input_embeddings().weight is model.get_output_embeddings().weight:
        described.get_output_embeddings().weight = described.get_input_embeddings().weight
    named = gguf_tensors(described, _description(model)[0])
    return {name: parameters[int(tensor[0, 0])] for name, tensor in named if tensor.dim() == 2}


def account(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that a written file holds every tensor once, by name and shape, in float32, and nothing else.

    Args:
        file: GGUF file.
        tensors: What it must hold; anything else is an ``ArtifactError``.
    """
    stored = {
        item.name: (item.tensor_type.name, list(map(int, item.shape))[::-1]) for item in gguf.GGUFReader(file).tensors
    }
    wanted = {name: ("F32", list(tensor.shape)) for name, tensor in tensors.items()}
    check_stored(file, stored, wanted)


def _description(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find the architecture that takes a model's layers, and its metadata."""
    description = gguf_description(model.config.model_type)
    fields = metadata(model.config, description)
    narrow = narrow_fields(model, description, fields)
    return {**description, **(description["width"] if narrow else {})}, {**fields, **narrow}


class _RowOrder:
    """Puts the rows of queries and keys in llama.cpp's order, where its graph pairs neighbours and not halves."""

    def __init__(self, model: Any, description: Mapping[str, Any]) -> None:
        config = model.config
        self._suffixes = tuple(description.get("interleaved_rope", ()))
        self._width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def __call__(self, path: str, rows_OX: Tensor) -> Tensor:
        if not self._suffixes or not path.endswith(self._suffixes):
            return rows_OX
        halves = rows_OX.reshape(-1, 2, self._width // 2, *rows_OX.shape[1:])
        return halves.transpose(1, 2).reshape(rows_OX.shape)


def stack_at(model: Any, path: str) -> tuple[str, list[str]]:
    """Name the matrix that a module leads.

    Args:
        model: transformers model of a known family.
        path: Path of the module.

    Returns:
        ``(kind, paths of the stack's parts)``.
    """
    matrices: dict[str, dict[str, Any]] = known_architectures()[model.config.model_type]["matrices"]
    kind, parts = next((kind, entry["parts"]) for kind, entry in matrices.items() if path.endswith(entry["parts"][0]))
    prefix = path.removesuffix(parts[0])
    return kind, [prefix + part for part in parts]


def _split(value: Tensor, module: FactoredLinear) -> tuple[Tensor, ...]:
    blocks: tuple[Tensor, ...] = value.split(list(module.part_features))
    return blocks


def _blocks(bases: list[str], suffix: str, blocks: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    if len(bases) == 1:
        yield f"{bases[0]}.{suffix}", blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return
    for base, block in zip(bases, blocks, strict=True):
        yield f"{base}.{suffix}", block


def _name(names: Any, path: str) -> str:
    found: str | None = names.get_name(path, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ModelError(f"{path}: llama.cpp has no name for this parameter")
    return found

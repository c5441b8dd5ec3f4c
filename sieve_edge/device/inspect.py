"""Looks into an exported file: what it is, who can load it, where its bytes are, and the ranks of its matrices."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sieve_edge.errors import ArtifactError, EnvironmentMissing
from sieve_edge.model.gguf_header import FORMAT_KEY, FORMAT_VERSION, StoredTensor, read_gguf_header

_DESCRIBED_IN = {"optimum (ORTModelForCausalLM)": "config.json", "onnxruntime-genai": "genai_config.json"}
"""Runtime of ONNX folders -> the file beside the graph that it reads first."""

PATCH = "docker/llama.cpp/factored-weights.patch"
_PARTS = {
    "embedding": ("token_embd", "embed_tokens", "wte", "wpe"),
    "norms": ("norm", "ln_"),
    "attention": ("attn",),
    "mlp": ("ffn", "mlp"),
    "head": ("output.weight", "lm_head"),
}
"""Part -> what its tensors' names contain; the first part that fits counts."""


def inspect_path(path: Path) -> dict[str, Any]:
    """Describe a GGUF file or an exported ONNX folder.

    Args:
        path: File, or folder with ``model.gguf`` or ``model.onnx``.

    Returns:
        JSON-compatible: ``format`` and its ``version``, ``factored_version`` (of factored weights in GGUF, else None),
        ``name``, ``architecture``, ``loads_in``, ``file_mib``, ``params``, ``bits_per_weight``, ``parts`` (MiB),
        ``types`` (tensors of each) and ``ranks``.

    Raises:
        ArtifactError: If it is neither.
    """
    if path.is_dir():
        found = [path / name for name in ("model.gguf", "model.onnx") if (path / name).is_file()]
        path = found[0] if found else path
    if path.suffix == ".gguf" and path.is_file():
        return _inspect_gguf(path)
    if path.suffix == ".onnx" and path.is_file():
        return _inspect_onnx(path)
    raise ArtifactError(f"{path}: neither a GGUF file nor a folder with model.gguf or model.onnx")


def _inspect_gguf(path: Path) -> dict[str, Any]:
    header = read_gguf_header(path)
    ranks = {
        item.name.removesuffix(".fac_b.weight"): item.shape[1] for item in header.tensors if ".fac_b." in item.name
    }
    factored = header.fields.get(FORMAT_KEY)
    loads_in = [f"llama.cpp with {PATCH} (make runtime)"] if ranks else ["llama.cpp"]
    if factored is not None and factored > FORMAT_VERSION:
        loads_in = [f"llama.cpp of a newer sieve-edge (this one knows {FORMAT_KEY} {FORMAT_VERSION})"]
    known = {name: header.fields.get(f"general.{name}") for name in ("name", "architecture")}
    figures = _figures(path.stat().st_size, header.tensors)
    versions = {"format": "gguf", "version": header.version, "factored_version": factored}
    return {**versions, **known, "loads_in": loads_in, **figures, "ranks": ranks}


def _inspect_onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ImportError as error:
        raise EnvironmentMissing("the package onnx is missing; run: pip install 'sieve-edge[torch]'") from error
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*"))
    tensors = []
    quantized = _quantized(graph)
    for item in graph.initializer:
        external = {entry.key: entry.value for entry in item.external_data}
        if not external:
            continue
        name, length = item.name, int(external["length"])
        shape = tuple(item.dims)[::-1] if name.endswith(".transposed") else tuple(item.dims)
        kind = onnx.TensorProto.DataType.Name(item.data_type)
        if name.endswith(".scales") and name.removesuffix(".scales") in quantized:
            # Part of what its weight takes, not parameters of their own.
            shape = ()
        elif name.endswith(".codes"):
            shape, kind = quantized[name.removesuffix(".codes")]
        tensors.append(StoredTensor(name.removesuffix(".transposed").removesuffix(".codes"), shape, kind, length))
    versions = {"format": "onnx", "version": model.ir_version, "factored_version": None}
    about = {**versions, "name": path.parent.name, "architecture": None, "loads_in": _onnx_runtimes(path, graph)}
    return {**about, **_figures(size, tensors), "ranks": _onnx_ranks(tensors)}


def _onnx_runtimes(path: Path, graph: Any) -> list[str]:
    """List the runtimes that find what they need: the graph's inputs, and the file that describes them."""
    own = sorted({node.op_type for node in graph.node if node.domain not in ("", "ai.onnx")})
    found = [f"onnxruntime, with its own operators {', '.join(own)}" if own else "onnxruntime"]
    inputs = {item.name for item in graph.input}
    # Both run ONNX Runtime, with its own operators too, and find the cache by these names.
    if inputs >= {"input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"}:
        for name, file in _DESCRIBED_IN.items():
            found += [name] if (path.parent / file).is_file() else []
    return found


def _quantized(graph: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and type of each weight that is stored as codes, off the node that reads it."""
    dims = {item.name: tuple(item.dims) for item in graph.initializer}
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in graph.node:
        facts = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            found[node.input[1].removesuffix(".codes")] = ((facts["N"], facts["K"]), f"int{facts['bits']}")
        elif node.op_type == "GatherBlockQuantized":
            name = node.input[2].removesuffix(".scales")
            rows, blocks = dims[node.input[2]]
            found[name] = ((rows, blocks * facts["block_size"]), f"int{facts['bits']}")
    return found


def _onnx_ranks(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """Read the rank of each factored linear off the shape of the factor that is stored whole."""
    shapes = {item.name: item.shape for item in tensors}
    ranks = {}
    for name in shapes:
        matrix = name.removesuffix(".weight").rpartition(".")[0]
        up, down, coef = (shapes.get(f"{matrix}.{part}.weight") for part in ("up", "down", "coef"))
        if up and (down or coef):
            ranks[matrix] = up[1]
        elif down and coef:
            ranks[matrix] = down[0]
    return ranks


def _figures(file_bytes: int, tensors: Iterable[StoredTensor]) -> dict[str, Any]:
    parts: Counter[str] = Counter()
    types: Counter[str] = Counter()
    params = stored = 0
    for item in tensors:
        params += math.prod(item.shape) if item.shape else 0
        stored += item.size
        types[item.kind] += bool(item.shape)
        parts[_part(item.name)] += item.size
    return {
        "file_mib": file_bytes / 2**20,
        "params": params,
        "bits_per_weight": 8.0 * stored / max(params, 1),
        "parts": {part: size / 2**20 for part, size in parts.items()},
        "types": dict(types),
    }


def _part(name: str) -> str:
    return next((part for part, marks in _PARTS.items() if any(mark in name for mark in marks)), "other")

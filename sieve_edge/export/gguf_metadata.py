"""Translates a model's configuration to GGUF metadata, by what its architecture file says of llama.cpp.

Source: llama.cpp's convert_hf_to_gguf.py, for what each key means.
"""

from collections.abc import Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from sieve_edge.errors import ModelError
from sieve_edge.model.matrices import decoder_layers, known_architectures

PLAIN_ROPE = ("default", "linear", "llama3")
"""Kinds of rotary embedding that are written; the others scale attention too."""


def gguf_description(model_type: str) -> dict[str, Any]:
    """Read what an architecture file says of llama.cpp.

    Args:
        model_type: transformers ``model_type``.

    Returns:
        ``architecture``, and what else differs between families.

    Raises:
        ModelError: If it says nothing.
    """
    description: dict[str, Any] | None = known_architectures()[model_type].get("gguf")
    if description is None:
        raise ModelError(
            f"model family '{model_type}': sieve_edge/model/architectures/{model_type}.json has no part 'gguf', so it "
            "cannot be exported to GGUF; choose a target of format onnx, or describe the family there"
        )
    return description


def check_config(config: Any, description: Mapping[str, Any]) -> None:
    """Refuse a configuration that llama.cpp's graph of this architecture does not compute.

    Args:
        config: transformers configuration.
        description: As from ``gguf_description``.

    Raises:
        ModelError: If a field has a value that is not among those required; all at once.
    """
    fields = config.to_dict()
    problems = []
    for name, allowed in description.get("requires", {}).items():
        # A required value may be the name of another field, which it must equal.
        wanted = [fields.get(value, value) if isinstance(value, str) else value for value in allowed]
        if fields.get(name) not in wanted:
            problems.append(f"{name} is {fields.get(name)}, must be {' or '.join(map(str, wanted))}")
    kind = _rope(config)["rope_type"]
    if kind not in PLAIN_ROPE:
        problems.append(f"rope_type is {kind}, must be one of {', '.join(PLAIN_ROPE)}")
    if problems:
        raise ModelError(f"model family '{config.model_type}': no GGUF of this configuration: {'; '.join(problems)}")


def metadata(config: Any, description: Mapping[str, Any]) -> dict[str, Any]:
    """List an architecture's metadata.

    Args:
        config: transformers configuration.
        description: As from ``gguf_description``.

    Returns:
        Key without the architecture's prefix -> value.
    """
    rope, heads = _rope(config), config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    fields: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_width,
        "attention.value_length": head_width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": int(head_width * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if rope["rope_type"] == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if not window:
        return fields
    if not description.get("sliding_window"):
        # This architecture's graph attends to everything, which is the same up to the window's length.
        return fields | {"context_length": min(context, window)}
    local = config.rope_parameters["sliding_attention"]
    return fields | {
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        "rope.freq_base_swa": float(local["rope_theta"]),
    }


def narrow_fields(model: Any, description: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """List the metadata of layers that differ in width.

    Args:
        model: transformers model.
        description: As from ``gguf_description``.
        fields: As from ``metadata``.

    Returns:
        Key -> a value for each layer; empty where all layers have the configuration's widths.

    Raises:
        ModelError: If llama.cpp has no graph for such layers of this family.
    """
    matrices = known_architectures()[model.config.model_type]["matrices"]
    inputs = {
        kind: [layer.get_submodule(matrices[kind]["parts"][0]).in_features for layer in decoder_layers(model)]
        for kind in ("o", "down")
    }
    heads, shared = fields["attention.head_count"], fields["attention.head_count_kv"]
    counts = [width // fields["attention.value_length"] for width in inputs["o"]]
    if set(counts) == {heads} and set(inputs["down"]) == {fields["feed_forward_length"]}:
        return {}
    if "width" not in description:
        raise ModelError(f"model family '{model.config.model_type}': llama.cpp has no graph for layers of other widths")
    return {
        "feed_forward_length": inputs["down"],
        "attention.head_count": counts,
        "attention.head_count_kv": [count * shared // heads for count in counts],
    }


def rope_factors(model: Any) -> Tensor | None:
    """Compute by how much each rotary frequency is divided, where the model changes them one by one.

    Args:
        model: transformers model.

    Returns:
        Factors, float32, (half of the rotary width,); None where all frequencies are plain.
    """
    rope = _rope(model.config)
    if rope["rope_type"] != "llama3":
        return None
    actual = next(value for name, value in model.named_buffers() if name.endswith("rotary_emb.inv_freq")).float()
    exponents = torch.arange(len(actual), dtype=torch.float32) / len(actual)
    factors: Tensor = float(rope["rope_theta"]) ** -exponents / actual
    return factors


def add_metadata(writer: gguf.GGUFWriter, architecture: str, fields: Mapping[str, Any]) -> None:
    """Write metadata with the types that llama.cpp reads.

    Args:
        writer: Open writer.
        architecture: Prefix of the keys.
        fields: As from ``metadata``.
    """
    for name, value in fields.items():
        key = f"{architecture}.{name}"
        match value:
            case str():
                writer.add_string(key, value)
            case float():
                writer.add_float32(key, value)
            case list():
                writer.add_array(key, value)
            case _:
                writer.add_uint32(key, value)


def _rope(config: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = config.rope_parameters
    full: dict[str, Any] = parameters.get("full_attention", parameters)
    return full

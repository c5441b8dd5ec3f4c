"""Writes what stands beside the graph: the base family's configuration, the tokenizer, and genai_config.json."""

from pathlib import Path
from typing import Any

import onnx

from sieve_edge.export.weights import GRAPH
from sieve_edge.files import disk_errors, read_json, write_json

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Written by transformers 5 about where the tokenizer was loaded from.
_LOADING_FIELDS = ("backend", "is_local", "local_files_only")


def write_companions(model: Any, tokenizer: Any, folder: Path) -> None:
    """Complete a folder that holds a graph, so that optimum and onnxruntime-genai load it.

    Args:
        model: transformers model, dense or sieved.
        tokenizer: Its fast tokenizer.
        folder: Folder with ``model.onnx``.
    """
    base_class = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    config = {**model.config.to_dict(), "architectures": [base_class.__name__]}
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)
    with disk_errors(folder):
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _make_portable(folder / "tokenizer_config.json")
    write_json(folder / "genai_config.json", _genai_config(model, tokenizer, folder))


def _make_portable(path: Path) -> None:
    """Say what transformers 4.57 understands: it knows neither the class nor the list that transformers 5 writes."""
    settings = {name: value for name, value in read_json(path).items() if name not in _LOADING_FIELDS}
    settings["tokenizer_class"] = TOKENIZER_CLASS
    # That class would add token_type_ids, which no decoder here takes.
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(path, settings)


def _genai_config(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    config, generation = model.config, model.generation_config
    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    keys = [value for value in graph.input if value.name.endswith(".key")]
    shape = keys[0].type.tensor_type.shape.dim
    ends = _first(generation.eos_token_id, config.eos_token_id, tokenizer.eos_token_id, 0)
    end = ends[0] if isinstance(ends, list) else ends
    start = _first(generation.bos_token_id, config.bos_token_id, tokenizer.bos_token_id, end)
    pad = _first(generation.pad_token_id, config.pad_token_id, tokenizer.pad_token_id, end)
    tokens = {"bos_token_id": start, "eos_token_id": ends, "pad_token_id": pad}
    decoder = {
        "filename": GRAPH,
        "session_options": {"provider_options": []},
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(keys),
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": shape[1].dim_value,
        "head_size": shape[3].dim_value,
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    length = config.max_position_embeddings
    # "decoder" is the runtime's name for any decoder with a cache, whatever its family.
    return {
        "model": {
            **tokens,
            "type": "decoder",
            "context_length": length,
            "vocab_size": config.vocab_size,
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": length, "past_present_share_buffer": False},
    }


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)

"""Translates a fast tokenizer to GGUF metadata.

Two kinds exist in llama.cpp that a BPE tokenizer can become: ``gpt2`` works on bytes and names how text is split before
merging; ``llama`` works on characters with bytes to fall back on, and merges by score.
"""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import gguf

from sieve_edge.errors import ModelError

_SPLITS = resources.files("sieve_edge.export") / "pretokenizers.json"
# What tokenizers writes and what changes no token here.
_DEFAULTS = {"trim_offsets": (True, False), "add_prefix_space": (False,), "use_regex": (True,), "invert": (False,)}


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Write a tokenizer.

    Args:
        writer: Open writer.
        tokenizer: Fast transformers tokenizer.
        vocab_size: Rows of the embedding; those without a token are marked unused, and tokens without one are left out,
            as the model cannot read them either.

    Raises:
        ModelError: If llama.cpp has no tokenizer like it.
    """
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    model = stored["model"]
    if model["type"] != "BPE":
        raise ModelError(f"tokenizer: its model is {model['type']}; a GGUF can hold BPE")
    bytewise = '"ByteLevel"' in json.dumps(stored["pre_tokenizer"])
    texts, types = _tokens(stored, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2" if bytewise else "llama")
    writer.add_tokenizer_pre(_split(stored["pre_tokenizer"]) if bytewise else "default")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    if bytewise:
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores(_scores(texts, merges))
        writer.add_add_space_prefix(_adds_space(stored))
    _add_special(writer, tokenizer, vocab_size)


def _tokens(stored: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    texts = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    known = {text: index for text, index in stored["model"]["vocab"].items() if index < vocab_size}
    for text, index in known.items():
        texts[index] = text
        types[index] = gguf.TokenType.BYTE if _is_byte(text) else gguf.TokenType.NORMAL
    if stored["model"].get("unk_token") in known:
        types[known[stored["model"]["unk_token"]]] = gguf.TokenType.UNKNOWN
    for added in stored["added_tokens"]:
        if added["id"] >= vocab_size:
            continue
        texts[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    return texts, [int(kind) for kind in types]


def _is_byte(text: str) -> bool:
    return len(text) == len("<0x00>") and text.startswith("<0x") and text.endswith(">")


def _scores(texts: list[str], merges: list[str]) -> list[float]:
    """Score a token by the first merge that makes it, so that the highest score is what BPE merges first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(text, len(merges))) for text in texts]


def _split(pre_tokenizer: Any) -> str:
    plain = _without_defaults(pre_tokenizer)
    for known in json.loads(_SPLITS.read_text(encoding="utf-8")):
        if known["pre_tokenizer"] == plain:
            name: str = known["pre"]
            return name
    raise ModelError(
        f"tokenizer: llama.cpp's name for its pre-tokenizer is not known: {json.dumps(plain)[:300]}; "
        "add it to sieve_edge/export/pretokenizers.json"
    )


def _without_defaults(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_defaults(item)
        for name, item in value.items()
        if not (name in _DEFAULTS and item in _DEFAULTS[name])
    }


def _adds_space(stored: Mapping[str, Any]) -> bool:
    text = json.dumps([stored["normalizer"], stored["pre_tokenizer"]])
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text or '"prepend_scheme": "first"' in text


def _add_special(writer: gguf.GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None and index < vocab_size:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)

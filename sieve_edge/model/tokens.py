"""Smaller vocabularies: which tokens of a BPE tokenizer a task needs, and the tokenizer and model without the others.

Dimension key: V tokens of the vocabulary, K tokens kept, D width of the embedding.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from sieve_edge.errors import ModelError

_ROLES = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
"""Settings of generation that give a token, or each of a list, a part in every answer."""

_IDS = (*_ROLES, "suppress_tokens", "begin_suppress_tokens")
"""Settings of generation that are a token, or a list of tokens."""

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def check_tokenizer(stored: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that cannot be trimmed.

    Args:
        stored: Content of ``tokenizer.json``.

    Raises:
        ModelError: If it is not BPE, marks the ends or insides of words, or has no bytes for other characters.
    """
    model = stored["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"vocabulary: the tokenizer's model is {model['type']}, and only BPE without marks inside words can be "
            "trimmed; build with --set vocabulary.keep=all"
        )
    bytewise = '"ByteLevel"' in json.dumps([stored["normalizer"], stored["pre_tokenizer"]])
    if not bytewise and not (model["byte_fallback"] and model["vocab"].keys() >= _BYTES):
        raise ModelError(
            "vocabulary: the tokenizer is neither ByteLevel nor has it byte_fallback with a token for all 256 bytes: "
            "characters that the task's texts lack could not be written any more; build with --set vocabulary.keep=all"
        )


def named_tokens(*configs: Any) -> set[int]:
    """List the tokens that start, end or fill answers, which no text has to hold.

    Tokens that may not be written are not among them: one that is left out cannot be.

    Args:
        *configs: Configurations of a model or of generation.

    Returns:
        Token ids.
    """
    values = [getattr(config, name, None) for config in configs for name in _ROLES]
    several = [value if isinstance(value, list) else [value] for value in values]
    return {index for indices in several for index in indices if index is not None}


def needed_tokens(stored: Mapping[str, Any], used: Iterable[int], rows: int) -> list[int]:
    """Choose the tokens to keep: those used, all that merging makes on the way to them, bytes and added tokens.

    BPE merges the pair of lowest rank first. All merges inside a token that is used are kept, and a subset of the
    merges that has them picks the same pairs in the same order, so texts made of used tokens encode as before; and
    with every byte kept, any text can be encoded.

    Args:
        stored: Content of ``tokenizer.json``.
        used: Token ids.
        rows: Tokens that the embedding has; a token beyond them is left out.

    Returns:
        Token ids, rising.
    """
    check_tokenizer(stored)
    model = stored["model"]
    vocab: dict[str, int] = model["vocab"]
    names = {index: token for token, index in vocab.items()}
    ranks = {pair: rank for rank, pair in enumerate(_pairs(model["merges"]))}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet()) | _BYTES
    kept = {token for token in vocab if token in alphabet} | {model.get("unk_token")}
    for index in set(used):
        if index in names:
            kept |= _made_on_the_way(names[index], ranks)
    added = {entry["id"] for entry in stored["added_tokens"]}
    return sorted(index for index in {vocab[token] for token in kept if token in vocab} | added if index < rows)


def trim_tokenizer(stored: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Leave tokens out of a tokenizer; those that are kept get new ids, in the same order.

    Args:
        stored: Content of ``tokenizer.json``.
        kept: Token ids, rising.

    Returns:
        Content of a smaller ``tokenizer.json``; without padding where its token is left out.
    """
    new_ids = {old: new for new, old in enumerate(kept)}
    trimmed = copy.deepcopy(dict(stored))
    model = trimmed["model"]
    model["vocab"] = {token: new_ids[index] for token, index in model["vocab"].items() if index in new_ids}
    model["merges"] = [
        list(pair)
        for pair in _pairs(model["merges"])
        if all(token in model["vocab"] for token in (*pair, "".join(pair)))
    ]
    trimmed["added_tokens"] = [
        {**entry, "id": new_ids[entry["id"]]} for entry in trimmed["added_tokens"] if entry["id"] in new_ids
    ]
    trimmed["post_processor"] = _renumbered(trimmed["post_processor"], new_ids)
    if padding := trimmed["padding"]:
        kept_pad = padding["pad_id"] in new_ids
        trimmed["padding"] = {**padding, "pad_id": new_ids[padding["pad_id"]]} if kept_pad else None
    return trimmed


def make_tokenizer(stored: str, like: Any) -> PreTrainedTokenizerFast:
    """Make a transformers tokenizer.

    Args:
        stored: Text of a ``tokenizer.json``.
        like: Tokenizer whose special tokens and chat template it has.

    Returns:
        The tokenizer.
    """
    special = {name: getattr(like, name) for name in _SPECIAL_TOKENS if getattr(like, name) is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(stored), **special)
    tokenizer.chat_template = like.chat_template
    tokenizer.model_max_length = like.model_max_length
    return tokenizer


@torch.inference_mode()
def trim_model_(model: Any, kept: Sequence[int]) -> None:
    """Leave rows out of embedding and head, and give tokens that configurations name their new ids, in place.

    Args:
        model: transformers model.
        kept: Token ids, rising.
    """
    rows_K = torch.tensor(list(kept), device=model.device)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    embedding.weight = nn.Parameter(embedding.weight[rows_K].clone(), requires_grad=False)
    head.weight = embedding.weight if tied else nn.Parameter(head.weight[rows_K].clone(), requires_grad=False)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[rows_K].clone(), requires_grad=False)
    embedding.num_embeddings = head.out_features = len(kept)
    embedding.padding_idx = None
    model.config.vocab_size = model.vocab_size = len(kept)
    if hasattr(model, "model"):
        model.model.vocab_size, model.model.padding_idx = len(kept), None
    new_ids = {old: new for new, old in enumerate(kept)}
    for config in (model.config, model.generation_config):
        renumber_(config, new_ids)


def renumber_(config: Any, new_ids: Mapping[int, int]) -> None:
    """Give every token that a configuration names its new id, in place.

    Lists lose the tokens that are gone, and sequences that hold one, since no text can have them any more; what is
    empty then is unset, as transformers takes no empty list for some of them.

    Args:
        config: Configuration of a model or of generation.
        new_ids: Old id -> new id, of tokens that are kept.
    """
    for name in _IDS:
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(config, name, [new_ids[index] for index in value if index in new_ids] or None)
        elif value is not None:
            setattr(config, name, new_ids.get(value))
    if banned := getattr(config, "bad_words_ids", None):
        config.bad_words_ids = [[new_ids[index] for index in ids] for ids in banned if _all_kept(ids, new_ids)] or None
    if forced := getattr(config, "forced_decoder_ids", None):
        # A place and its token, which may be none in particular.
        kept = [[place, new_ids.get(index)] for place, index in forced if index is None or index in new_ids]
        config.forced_decoder_ids = kept or None
    if biases := getattr(config, "sequence_bias", None):
        # Pairs where it was read from JSON, which has no tuples for keys.
        pairs = biases.items() if isinstance(biases, dict) else biases
        biased = [([new_ids[index] for index in ids], bias) for ids, bias in pairs if _all_kept(ids, new_ids)]
        as_dict = isinstance(biases, dict)
        config.sequence_bias = ({tuple(ids): bias for ids, bias in biased} if as_dict else [*map(list, biased)]) or None


def _all_kept(ids: Iterable[int], new_ids: Mapping[int, int]) -> bool:
    return all(index in new_ids for index in ids)


def _pairs(merges: Sequence[Any]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]


def _made_on_the_way(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """List what BPE makes of a token's own text, from its symbols to the token."""
    symbols = list(token)
    made = {token, *symbols}
    while len(symbols) > 1:
        candidates = [(ranks.get(pair), place) for place, pair in enumerate(pairwise(symbols))]
        known = [(rank, place) for rank, place in candidates if rank is not None]
        if not known:
            break
        _, place = min(known)
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        made.add(symbols[place])
    return made


def _renumbered(node: Any, new_ids: Mapping[int, int]) -> Any:
    """Give every id inside a post-processor its new number: lists called ``ids``, and pairs of a token and its id."""
    if isinstance(node, dict):
        return {
            name: [new_ids[index] for index in value] if name == "ids" else _renumbered(value, new_ids)
            for name, value in node.items()
        }
    if isinstance(node, list):
        if len(node) == 2 and isinstance(node[0], str) and isinstance(node[1], int):
            return [node[0], new_ids[node[1]]]
        return [_renumbered(item, new_ids) for item in node]
    return node

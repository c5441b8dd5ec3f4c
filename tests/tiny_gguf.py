"""Random tiny models of each family that a GGUF can hold, and tokenizers for them."""

import copy
import json

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sieve_edge.config import Target
from sieve_edge.learn.widths import keep_inputs
from sieve_edge.model.factored import FactoredLinear, install_
from sieve_edge.model.matrices import find_matrices, stacked_bias, stacked_weight
from sieve_edge.model.stored_types import plan_types
from sieve_edge.model.widths import narrow_, width_specs
from tests.pico import PROMPT, sentences

TEXTS = [PROMPT.replace("{{ text }}", row.text) for row in sentences(24, seed=3)]
HIDDEN, RANK = 64, 32
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
OWN = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def train_bytes(vocab_size=400):
    """A byte-level tokenizer, as most families have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def train_pieces():
    """A tokenizer of characters that falls back on bytes, as SentencePiece models have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    stored = json.loads(tokenizer.to_str())
    # The trainer counts bytes as special; in real models a text that spells one, <0x41>, is not that byte.
    stored["added_tokens"] = [entry for entry in stored["added_tokens"] if not entry["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZER = train_bytes()


def make_model(family, **fields):
    config = AutoConfig.for_model(family, **(SIZES | OWN.get(family, {}) | {"vocab_size": len(TOKENIZER)} | fields))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        # Biases and norms that are not 0 and 1, so that a lost or swapped one shows.
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return model.requires_grad_(False)


def factor(model, family, rank=RANK):
    """Give a model random pairs; returns it, and a dense one with their products."""
    pairs, merged = copy.deepcopy(model), copy.deepcopy(model)
    for spec in find_matrices(model, family):
        bias = stacked_bias(model, spec)
        leader = FactoredLinear(spec.in_features, spec.part_features, rank, bias=bias is not None)
        leader.requires_grad_(False)
        leader.up.weight.mul_(2.0)
        if bias is not None:
            leader.bias.copy_(bias)
        install_(pairs, spec.paths, leader)
        blocks = (leader.up.weight @ leader.down.weight).split(list(spec.part_features))
        for path, block in zip(spec.paths, blocks, strict=True):
            merged.get_submodule(path).weight.copy_(block)
    return pairs, merged


def narrow(family):
    """A tiny model whose layers differ in width, and its counts of heads and channels."""
    model = make_model(family)
    for spec in width_specs(find_matrices(model, family), model.config):
        rank = {"0.o": 32, "0.down": 96, "1.down": 32}.get(spec.name)
        if rank is not None:
            weight_OI = stacked_weight(model, spec).double()
            factors = keep_inputs(weight_OI, torch.eye(spec.in_features).double(), weight_OI.T @ weight_OI, spec.unit)
            narrow_(model, spec, factors.down_RI[:rank].float(), factors.up_RO[:rank].float())
    return model


def target(format_, quantization, **fields):
    """A target for tiny models, with any rank."""
    runtime = {"onnx": "onnxruntime", "gguf": "llama.cpp"}[format_]
    known = {"name": "toy", "description": "toy", "threads": 1, "rank_multiple": 1, "rank_multiple_reason": "toy"}
    given = {"format": format_, "runtime": runtime, "storage": "pair", "quantization": quantization}
    return Target(**known, **given, **fields, model="x", task="y")


def types_of(model, quantization):
    """Types that a GGUF's tensors may have, by the parameter that they are made of."""
    return {name: entry["types"] for name, entry in plan_types(model, target("gguf", quantization)).items()}

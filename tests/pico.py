"""Pico models: several families, hidden 32, trained for seconds on a toy sentiment language so that pruning can hurt.

The label of a sentence is the majority of its polarity words. Sentences of the transfer source are longer.
"""

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

GOOD = [
    "great",
    "lovely",
    "superb",
    "charming",
    "clever",
    "warm",
    "funny",
    "bright",
    "tender",
    "fresh",
    "moving",
    "rich",
]
BAD = ["awful", "dull", "dreary", "clumsy", "stale", "bleak", "noisy", "flat", "tedious", "cheap", "hollow", "grim"]
FILLERS = [
    "the",
    "a",
    "film",
    "movie",
    "story",
    "plot",
    "actor",
    "scene",
    "music",
    "end",
    "start",
    "it",
    "is",
    "was",
    "has",
    "of",
    "and",
    "with",
    "in",
    "on",
    "very",
    "quite",
    "so",
    "this",
    "that",
    "one",
    "whole",
    "screen",
    "cast",
    "script",
    "camera",
    "night",
    "day",
]
ANSWERS = {"0": " bad", "1": " good"}
PROMPT = "Text: {{ text }} Sentiment:"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "gpt2")

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "phi3": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}
_STEPS = 200
_BATCH = 32
_TRAINING_SENTENCES = 4000


@dataclass(frozen=True)
class Sentence:
    """One sentence of the toy language with its label, ``"0"`` or ``"1"``."""

    text: str
    label: str


def sentences(count: int, seed: int, words: tuple[int, int] = (3, 10)) -> list[Sentence]:
    """Make distinct, balanced sentences."""
    source = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < count:
        label = str(len(made) % 2)
        length = source.randint(*words)
        polar = source.choice([number for number in (1, 3, 5) if number <= length])
        right = source.randint(polar // 2 + 1, polar)
        major, minor = (GOOD, BAD) if label == "1" else (BAD, GOOD)
        chosen = [source.choice(major) for _ in range(right)] + [source.choice(minor) for _ in range(polar - right)]
        chosen += [source.choice(FILLERS) for _ in range(length - polar)]
        source.shuffle(chosen)
        made.setdefault(" ".join(chosen), label)
    return [Sentence(text, label) for text, label in made.items()]


def write_csv(path: Path, rows: list[Sentence]) -> None:
    """Write sentences as a table with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row.text, row.label] for row in rows)


def write_task(folder: Path) -> Path:
    """Write a task over the toy language with its data; the transfer source has longer sentences."""
    write_csv(folder / "source.csv", sentences(520, seed=1))
    write_csv(folder / "transfer.csv", sentences(120, seed=2, words=(9, 14)))
    task = {
        "name": "toy-sentiment",
        "description": "Sentiment of toy sentences; transfer: longer ones.",
        "source": {"path": f"file:{folder / 'source.csv'}"},
        "transfer": {"path": f"file:{folder / 'transfer.csv'}"},
        "prompt": PROMPT,
        "labels": ANSWERS,
        "splits": {"calibration": 200, "selection": 100, "test": 200, "transfer": 100},
    }
    path = folder / "toy-sentiment.yaml"
    path.write_text(yaml.safe_dump(task), encoding="utf-8")
    return path


def write_target(folder: Path, model: Path, task: Path, **fields: Any) -> Path:
    """Write a target for pico models on ONNX Runtime, or with other fields."""
    target: dict[str, Any] = {
        "name": "toy-cpu",
        "description": "This machine, one thread.",
        "format": "onnx",
        "runtime": "onnxruntime",
        "threads": 1,
        "connection": "local",
        "rank_multiple": 2,
        "rank_multiple_reason": "Matrices of 32 features need levels between the pruning factors.",
        "workload": {"decode_tokens": 4, "repeats": 3},
        "model": str(model),
        "task": str(task),
    } | fields
    path = folder / f"{target['name']}.yaml"
    path.write_text(yaml.safe_dump(target), encoding="utf-8")
    return path


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Make a tokenizer with one token a word; a word's leading space is part of it, as in real ones."""
    words = ["Text", ":", "Sentiment", *GOOD, *BAD, *FILLERS, "good", "bad"]
    pieces = ["<pad>", "<unk>", "<s>", "</s>", *dict.fromkeys(form for word in words for form in (word, f"Ġ{word}"))]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_bpe_tokenizer(other_words: str = "") -> transformers.PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer, which a GGUF file can hold; words of the toy language are one token here too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        special_tokens=["<pad>", "<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [
        "Text: Sentiment: good bad",
        other_words,
        *(PROMPT.replace("{{ text }}", row.text) for row in sentences(400, seed=5)),
    ]
    tokenizer.train_from_iterator(words, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_model(family: str, seed: int = 0, tokens: Any = None, **fields: Any) -> Any:
    """Make an untrained pico model of a family, or with other fields of its configuration."""
    tokens = tokens or make_tokenizer()
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(tokens)}
    if family == "gpt2":
        own = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64, "initializer_range": 0.2}
        own |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        own = _SIZES | _OWN.get(family, {})
    config = transformers.AutoConfig.for_model(family, **(own | special | fields))
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def train(model: Any, seed: int = 0, tokens: Any = None) -> float:
    """Train a pico model to answer; returns its balanced accuracy on fresh sentences."""
    tokens = tokens or make_tokenizer()
    answers = torch.tensor([tokens.encode(answer)[0] for answer in ANSWERS.values()])
    data = [_encode(tokens, row) for row in sentences(_TRAINING_SENTENCES, seed=seed + 1000)]
    source = random.Random(seed)
    # With embeddings that stay random the matrices have to do the work, in many directions; embeddings that learn
    # would leave them a task of rank one, which no pruning could hurt.
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=_STEPS)
    model.train()
    for _ in range(_STEPS):
        loss = torch.nn.functional.cross_entropy(*_answer_logits(model, source.sample(data, _BATCH), answers))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        logits, labels = _answer_logits(model, [_encode(tokens, row) for row in sentences(400, seed=7)], answers)
    predicted = answers[logits[:, answers].argmax(1)]
    return sum(float((predicted == answer)[labels == answer].float().mean()) for answer in answers) / len(answers)


def make_pico(family: str, folder: Path, seed: int = 0, tokens: Any = None, **fields: Any) -> Path:
    """Train a pico model of a family and save it with its tokenizer as a Hugging Face directory."""
    assert family in FAMILIES, family
    tokens = tokens or make_tokenizer()
    model = make_model(family, seed, tokens, **fields)
    accuracy = train(model, seed, tokens)
    if accuracy < 0.9:
        raise RuntimeError(f"pico {family} learned only {accuracy:.3f}, must be 0.9")
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def _encode(tokens: Any, row: Sentence) -> tuple[list[int], int]:
    return tokens.encode(PROMPT.replace("{{ text }}", row.text)), int(row.label)


def _answer_logits(model: Any, rows: list[tuple[list[int], int]], answers: Any) -> tuple[Any, Any]:
    longest = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in rows])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1)
    return output.logits[:, -1], answers[torch.tensor([label for _, label in rows])]

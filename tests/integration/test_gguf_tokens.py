"""Tokens of a GGUF: text, chats, and what starts and ends them, as the model's own tokenizer has them."""

import gguf
import pytest
from tokenizers import AddedToken

from sieve_edge.device.llama import LlamaTextModel
from sieve_edge.export.gguf_folder import GgufWeights, write_gguf_folder
from sieve_edge.export.to_gguf import write_gguf
from sieve_edge.model.load import chat_of
from sieve_edge.task.prompts import write_chat
from tests.tiny_gguf import TEXTS, TOKENIZER, make_model, train_bytes, train_pieces

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatty(*further):
    """A tokenizer with a chat template, whose special tokens are added after training."""
    tokenizer = train_bytes()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *further]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def written(tokenizer, folder, **fields):
    model = make_model("llama", **{"vocab_size": len(tokenizer), **fields})
    write_gguf(model, tokenizer, "tokens", folder / "tokens.gguf")
    return LlamaTextModel(folder / "tokens.gguf", 1, 64)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, train_pieces()], ids=["bytes", "pieces"])
def test_llama_cpp_splits_text_into_the_same_tokens(tokenizer, tmp_path):
    loaded = written(tokenizer, tmp_path)
    for text in (*TEXTS, "Zebra 1999, naïve façade!", "日本語", "tabs\tand\nlines", "  two  spaces "):
        assert loaded.encode(text) == tokenizer.encode(text)


def test_a_chat_is_split_into_its_special_tokens(tmp_path):
    tokenizer = chatty()
    text = write_chat([{"role": "user", "content": TEXTS[0]}], chat_of(tokenizer))
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert written(tokenizer, tmp_path).encode(text) == ids
    model = make_model("llama", vocab_size=len(tokenizer))
    metrics, _ = write_gguf_folder(model, tokenizer, [text], "chat", GgufWeights("F32"), tmp_path, lambda _: None)
    assert metrics["max_logit_difference"] < 1e-4


@pytest.mark.parametrize("starts", [False, True])
def test_what_starts_and_ends_a_text_is_written(starts, tmp_path):
    tokenizer = chatty()
    if starts:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    loaded = written(tokenizer, tmp_path)
    fields = gguf.GGUFReader(tmp_path / "tokens.gguf").fields
    read = {name: fields[f"tokenizer.{name}"].contents() for name in ("chat_template", "ggml.model")}
    ids = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("bos_token_id", "eos_token_id")}
    added = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("add_bos_token", "add_eos_token")}
    assert read == {"chat_template": TEMPLATE, "ggml.model": "gpt2"}
    assert ids == {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    assert added == {"add_bos_token": starts, "add_eos_token": False}
    assert loaded.encode("a") == tokenizer.backend_tokenizer.encode("a").ids
    assert (loaded.encode("a")[0] == tokenizer.bos_token_id) == starts


def test_tokens_without_a_row_of_the_embedding_are_left_out(tmp_path):
    tokenizer = chatty("<image>")
    tokenizer.add_tokens([AddedToken("plain", special=False)])
    tokenizer.pad_token = "<image>"
    rows = tokenizer.convert_tokens_to_ids("<image>")
    assert rows == len(tokenizer) - 2
    loaded = written(tokenizer, tmp_path, vocab_size=rows)
    fields = gguf.GGUFReader(tmp_path / "tokens.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].data) == rows
    assert "tokenizer.ggml.padding_token_id" not in fields
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)

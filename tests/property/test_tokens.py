"""Smaller vocabularies: what was seen encodes as before, and anything else still comes back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from sieve_edge.errors import ModelError
from sieve_edge.model.tokens import check_tokenizer, needed_tokens, trim_tokenizer
from tests.tiny_gguf import TEXTS, train_bytes, train_pieces

WHOLE = {"bytes": train_bytes(700), "pieces": train_pieces()}
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def trimmed(name, texts):
    whole = WHOLE[name].backend_tokenizer
    stored = json.loads(whole.to_str())
    kept = needed_tokens(stored, (index for text in texts for index in whole.encode(text).ids), 10_000)
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(stored, kept)))
    return whole, small, kept


@pytest.mark.parametrize("name", WHOLE)
@given(st.lists(st.sampled_from(TEXTS) | ANY_TEXT, min_size=1, max_size=5))
def test_texts_that_were_seen_encode_exactly_as_before(name, texts):
    whole, small, kept = trimmed(name, texts)
    assert len(kept) <= whole.get_vocab_size()
    assert small.get_vocab_size() == len(kept)
    for text in texts:
        before, after = whole.encode(text), small.encode(text)
        assert after.tokens == before.tokens
        assert [kept[index] for index in after.ids] == before.ids


@pytest.mark.parametrize("name", WHOLE)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3), ANY_TEXT)
def test_any_text_comes_back(name, texts, other):
    # SentencePiece writes spaces as this mark, and so reads the mark as a space.
    expected = other.replace("▁", " ") if name == "pieces" else other
    for tokenizer in trimmed(name, texts)[:2]:
        assert tokenizer.decode(tokenizer.encode(other).ids, skip_special_tokens=False) == expected


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("text", ["", " ", "  two ", "\x00", "é😀\n", "<0x41>", "</s>", "tab\tand ▁"])
def test_awkward_texts_come_back(name, text):
    _, small, _ = trimmed(name, TEXTS[:1])
    expected = text.replace("▁", " ") if name == "pieces" else text
    assert small.decode(small.encode(text).ids, skip_special_tokens=False) == expected


def test_much_is_left_out_and_special_tokens_stay():
    whole, small, kept = trimmed("bytes", TEXTS[:1])
    assert 256 < len(kept) < whole.get_vocab_size()
    assert [small.token_to_id(token) for token in ("<s>", "</s>")] == [0, 1]
    assert [kept.index(whole.token_to_id(token)) for token in ("<s>", "</s>")] == [0, 1]


def test_ids_inside_the_post_processor_are_renumbered():
    stored = json.loads(WHOLE["bytes"].backend_tokenizer.to_str())
    last = max(stored["model"]["vocab"].values())
    token = next(token for token, index in stored["model"]["vocab"].items() if index == last)
    special = {"id": "end", "ids": [last], "tokens": [token]}
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "end", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"end": special},
    }
    kept = needed_tokens(stored, [last], 10_000)
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(stored, kept)))
    assert small.encode("a").tokens[-1] == token
    assert small.encode("a").ids[-1] == len(kept) - 1


def test_padding_names_its_token_by_its_new_id():
    stored = json.loads(WHOLE["bytes"].backend_tokenizer.to_str())
    token, last = max(stored["model"]["vocab"].items(), key=lambda item: item[1])
    stored["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    stored["padding"] |= {"pad_id": last, "pad_type_id": 0, "pad_token": token}
    kept = needed_tokens(stored, [last], 10_000)
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(stored, kept)))
    assert small.encode("a").ids[1:] == [small.token_to_id(token)] * 8
    assert trim_tokenizer(stored, [index for index in kept if index != last])["padding"] is None


def test_other_kinds_of_tokenizers_are_refused():
    words = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(ModelError, match="WordLevel, and only BPE"):
        needed_tokens(words, [0], 1)


def test_a_tokenizer_that_could_not_write_other_characters_is_refused():
    letters = json.loads(Tokenizer(models.BPE({"<unk>": 0, "a": 1, "é": 2}, [], unk_token="<unk>")).to_str())
    lacking = json.loads(WHOLE["pieces"].backend_tokenizer.to_str())
    del lacking["model"]["vocab"]["<0xC3>"]
    for stored in (letters, lacking):
        with pytest.raises(ModelError, match="neither ByteLevel nor has it byte_fallback with a token for all 256"):
            check_tokenizer(stored)


def test_a_token_that_the_embedding_lacks_is_left_out():
    stored = json.loads(WHOLE["bytes"].backend_tokenizer.to_str())
    extra = {**stored["added_tokens"][0], "id": 5000, "content": "<image>"}
    stored["added_tokens"].append(extra)
    kept = needed_tokens(stored, [], 5000)
    assert 5000 not in kept
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(stored, kept)))
    assert small.token_to_id("<image>") is None

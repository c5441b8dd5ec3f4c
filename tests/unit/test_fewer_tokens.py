"""A model with fewer tokens: the same numbers for those that stayed, and settings that name them by their new ids."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from sieve_edge.model.load import LoadedModel
from sieve_edge.model.source import ModelSource
from sieve_edge.model.tokens import named_tokens, renumber_, trim_model_
from sieve_edge.resolve import load_recipe, load_task
from sieve_edge.task.examples import load_splits
from sieve_edge.vocabulary import smaller_vocabulary
from tests.pico import make_bpe_tokenizer
from tests.tiny_gguf import TOKENIZER, make_model

KEPT = [0, 1, 4, 9, 30, 77, 100]
NEW = {old: new for new, old in enumerate(KEPT)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_tokens_that_are_kept_have_the_same_logits(family, tied):
    whole = make_model(family, tie_word_embeddings=tied)
    small = copy.deepcopy(whole)
    trim_model_(small, KEPT)
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == tied
    assert len(small.get_input_embeddings().weight) == len(small.get_output_embeddings().weight) == len(KEPT)
    assert small.config.vocab_size == len(KEPT)
    old, new = torch.tensor([[4, 77, 30, 0]]), torch.tensor([[NEW[index] for index in (4, 77, 30, 0)]])
    torch.testing.assert_close(small(new).logits, whole(old).logits[..., KEPT])


def test_a_head_of_its_own_keeps_its_bias():
    whole = make_model("llama", tie_word_embeddings=False)
    head = torch.nn.Linear(64, len(TOKENIZER), bias=True)
    whole.set_output_embeddings(head)
    small = copy.deepcopy(whole)
    trim_model_(small, KEPT)
    torch.testing.assert_close(small.get_output_embeddings().bias, head.bias[KEPT])
    torch.testing.assert_close(small(torch.tensor([[2]])).logits, whole(torch.tensor([[4]])).logits[..., KEPT])


def settings(**fields):
    """Settings of a model that was trimmed."""
    model = make_model("llama")
    model.generation_config = GenerationConfig(**fields)
    trim_model_(model, KEPT)
    return model.generation_config


def test_settings_of_generation_name_tokens_by_their_new_ids():
    found = settings(
        bos_token_id=4,
        eos_token_id=[9, 8, 30],
        pad_token_id=77,
        decoder_start_token_id=100,
        forced_bos_token_id=30,
        forced_eos_token_id=[9, 8],
        suppress_tokens=[8, 77, 100],
        begin_suppress_tokens=[4, 5],
        bad_words_ids=[[4, 9], [4, 5], [77]],
        sequence_bias={(4, 9): -1.0, (5,): 2.0, (100,): 0.5},
        forced_decoder_ids=[[1, 9], [2, 8], [3, None]],
    )
    expected = {
        "bos_token_id": 2,
        "eos_token_id": [3, 4],
        "pad_token_id": 5,
        "decoder_start_token_id": 6,
        "forced_bos_token_id": 4,
        "forced_eos_token_id": [3],
        "suppress_tokens": [5, 6],
        "begin_suppress_tokens": [2],
        "bad_words_ids": [[2, 3], [5]],
        "sequence_bias": {(2, 3): -1.0, (6,): 0.5},
        "forced_decoder_ids": [[1, 3], [3, None]],
    }
    assert {name: getattr(found, name) for name in expected} == expected


def test_settings_of_which_nothing_is_left_are_unset():
    lists = {"suppress_tokens": [8], "bad_words_ids": [[8]], "sequence_bias": [[[8], 1.0]], "forced_bos_token_id": 5}
    found = settings(**lists, forced_decoder_ids=[[1, 8]])
    assert [getattr(found, name) for name in (*lists, "forced_decoder_ids")] == [None] * 5


def test_biases_that_were_read_from_json_stay_lists():
    config = GenerationConfig(sequence_bias=[[[4, 9], -1.0], [[5], 2.0]])
    renumber_(config, NEW)
    assert config.sequence_bias == [[[2, 3], -1.0]]


def test_the_model_s_own_configuration_is_renumbered_too():
    model = make_model("llama", bos_token_id=4, eos_token_id=9, pad_token_id=77)
    trim_model_(model, KEPT)
    assert [getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")] == [2, 3, 5]
    assert model.get_input_embeddings().padding_idx is None


def test_tokens_that_have_a_part_in_every_answer_are_named():
    generation = GenerationConfig(bos_token_id=4, eos_token_id=[9, 8], forced_eos_token_id=[7], suppress_tokens=[30])
    assert named_tokens(GenerationConfig(pad_token_id=77), generation) == {4, 7, 8, 9, 77}


def test_an_end_token_that_no_text_holds_is_kept(toy_task):
    task, recipe = load_task(str(toy_task)), load_recipe(("vocabulary.keep=auto",))
    tokens = make_bpe_tokenizer("submarine volcano parliament")
    model = make_model("llama", vocab_size=len(tokens))
    loaded = LoadedModel(ModelSource("toy", "toy", "toy", None), model, tokens, ())
    splits = load_splits(task, 0)
    unused = max(set(range(len(tokens))) - set(smaller_vocabulary(loaded, task, splits, recipe).kept))
    model.generation_config = GenerationConfig(eos_token_id=[tokens.eos_token_id, unused])
    smaller = smaller_vocabulary(loaded, task, splits, recipe)
    ends = list(smaller.ends(loaded))
    assert [smaller.kept[index] for index in ends] == [tokens.eos_token_id, unused]
    smaller.trim_(model)
    assert model.generation_config.eos_token_id == ends

"""Refit, and runs that start at a layer, on pico models against brute force."""

import numpy as np
import pytest
import torch

from sieve_edge.learn.baselines import weight_svd
from sieve_edge.model.bank import ProjectionBank, write_nested
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import load_model, shared_copy
from sieve_edge.model.matrices import decoder_layers, stacked_weight
from sieve_edge.model.refit import Refit, refit
from sieve_edge.model.resume import ResumableModel
from sieve_edge.model.source import find_model
from sieve_edge.model.switchable import install_switchable_, switch_
from sieve_edge.model.walk import run_layer, start_walk
from sieve_edge.task.divergence import Answered, answer_distributions, divergence, with_answers
from tests.pico import FAMILIES

PREFIX = list(range(4, 24))


@pytest.fixture(scope="module")
def load(pico):
    return lambda family: load_model(find_model(str(pico(family))), "cpu")


@pytest.fixture(scope="module")
def banks(load, tmp_path_factory):
    made = {}

    def make(family):
        if family not in made:
            folder, loaded = tmp_path_factory.mktemp(family), load(family)
            for spec in loaded.specs:
                found = weight_svd(stacked_weight(loaded.model, spec).double())
                facts = (found.error_R, found.energy, found.found_rank)
                write_nested(folder, spec.name, found.down_RI, found.up_RO, *facts)
            made[family] = ProjectionBank(folder)
        return made[family]

    return make


def tails(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.integers(3, 60, length).tolist() for _ in range(6)] for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_equals_one_forward_pass(load, family):
    model = load(family).model
    batches = start_walk(model, PREFIX, tails((3, 7)))
    hidden = [batch.hidden_BTD for batch in batches]
    for index, layer in enumerate(decoder_layers(model)):
        hidden = run_layer(layer, index, batches, hidden)
    last = {}
    handle = decoder_layers(model)[-1].register_forward_hook(lambda _, __, output: last.update(output=output))
    with torch.inference_mode():
        for rows, got in zip(tails((3, 7)), hidden[1:], strict=True):
            model(torch.tensor([PREFIX + row for row in rows]))
            assert torch.allclose(last["output"][:, len(PREFIX) :], got, atol=1e-4)
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_refit_brings_outputs_nearer_to_the_dense_ones(load, banks, family):
    loaded = load(family)
    pruned = shared_copy(loaded.model)
    leaders = install_switchable_(pruned, loaded.specs, banks(family))
    half = {spec.name: min(spec.in_features, spec.out_features) // 2 for spec in loaded.specs}
    switch_(leaders, half)
    prompts = tails(range(2, 12))
    done = refit(loaded.model, pruned, leaders, PREFIX, prompts, Refit((0.01, 0.1, 1.0)))
    assert [record["matrix"] for record in done.records] == [spec.name for spec in loaded.specs]
    assert any(record["ridge"] is not None for record in done.records)
    assert {f"{record['matrix']}.up" for record in done.records if record["ridge"]} == set(done.factors)
    refitted = unseen_error(loaded.model, pruned)
    again = refit_again(loaded, banks(family), half, prompts)
    assert all(torch.equal(again.factors[name], factor) for name, factor in done.factors.items()), (
        "same run, same result"
    )
    switch_(leaders, half)
    assert refitted < unseen_error(loaded.model, pruned)


def refit_again(loaded, bank, ranks, prompts):
    copy = shared_copy(loaded.model)
    leaders = install_switchable_(copy, loaded.specs, bank)
    switch_(leaders, ranks)
    return refit(loaded.model, copy, leaders, PREFIX, prompts, Refit((0.01, 0.1, 1.0)))


def unseen_error(dense, pruned):
    with torch.inference_mode():
        ids = torch.tensor([PREFIX + row for row in tails((8,), seed=99)[0]])
        difference = dense(ids).logits - pruned(ids).logits
    return float(difference.square().mean())


def test_refit_of_a_dense_plan_changes_nothing(load, banks):
    loaded = load("llama")
    copy = shared_copy(loaded.model)
    leaders = install_switchable_(copy, loaded.specs, banks("llama"))
    done = refit(loaded.model, copy, leaders, PREFIX, tails((3, 5)), Refit((0.1,)))
    assert done.records == []
    assert done.factors == {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 1])
def test_a_run_resumed_at_a_layer_equals_the_whole_run(load, banks, family, first):
    loaded = load(family)
    copy = shared_copy(loaded.model)
    leaders = install_switchable_(copy, loaded.specs, banks(family))
    answered = [Answered((*PREFIX, *row), 1) for rows in tails((3, 5)) for row in rows]
    model = ResumableModel(copy, "cpu")
    with model.recording():
        dense = [batch for _, batch in answer_distributions(model, answered, 64)]
    assert divergence(model, dense, answered, 64) == pytest.approx(0.0, abs=1e-9)
    ranks = {spec.name: 4 if spec.layer >= first else None for spec in loaded.specs}
    switch_(leaders, ranks)
    whole = divergence(TorchTextModel(copy, "cpu"), dense, answered, 64)
    with model.resuming(first):
        resumed = divergence(model, dense, answered, 64)
    assert whole > 1e-4
    assert resumed == pytest.approx(whole, rel=1e-3)
    assert divergence(model, dense, answered, 64) == pytest.approx(whole, rel=1e-6), "nothing stays patched"


def test_divergence_is_taken_at_every_position_of_the_dense_answer(load):
    loaded = load("llama")
    model = TorchTextModel(loaded.model, "cpu")
    prompts = [PREFIX + row for rows in tails((3, 5)) for row in rows]
    answered = with_answers(model, prompts, 3, lambda _: False, 64)
    ids = torch.tensor([prompts[0]])
    with torch.inference_mode():
        greedy = loaded.model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, len(prompts[0]) :]
    assert list(answered[0].ids) == [*prompts[0], *greedy.tolist()[:-1]]
    other = shared_copy(loaded.model)
    rows = dict(answer_rows(model, answered))
    with torch.inference_mode():
        logits = other(torch.tensor([answered[0].ids])).logits[0, -3:].log_softmax(-1)
    assert rows[0] == pytest.approx(logits.numpy(), abs=1e-4)


def answer_rows(model, answered):
    for rows, batch in answer_distributions(model, answered, 64):
        yield from zip(rows, batch, strict=True)

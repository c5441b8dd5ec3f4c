"""Training: batches and steps, factors that train well, and a run that is killed or runs into no numbers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sieve_edge.errors import CalibrationError
from sieve_edge.model.balance import balance_, restore_
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.progress import Progress
from sieve_edge.tune.batches import (
    answer_logits,
    answer_loss,
    distillation_loss,
    label_loss,
    make_batches,
    step_batches,
)
from sieve_edge.tune.training import STATE, Schedule, train
from tests.tiny_gguf import TEXTS, TOKENIZER, make_model


def problem():
    model = make_model("llama")
    prompts = [TOKENIZER.encode(text) for text in TEXTS]
    answers = [TOKENIZER.encode(" good" if index % 2 else " very bad") for index in range(len(prompts))]
    return model, make_batches(prompts, answers, 100, "cpu")


def test_batches_score_what_whole_prompts_do():
    model, (prefix, batches) = problem()
    batch = batches[0]
    assert set(map(len, batch.ids_BT)) == {batch.ids_BT.shape[1]}
    rows = torch.tensor([prefix + row for row in batch.ids_BT.tolist()])
    whole = model(rows).logits[:, -batch.targets_BK.shape[1] :]
    logits = answer_logits(model, prefix, batch)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
    assert float(distillation_loss(logits, whole, batch)) == pytest.approx(0.0, abs=1e-5)
    likelihoods = [
        -float(whole[row, column].log_softmax(-1)[token])
        for row, tokens in enumerate(batch.targets_BK.tolist())
        for column, token in enumerate(tokens)
        if token != -100
    ]
    assert float(answer_loss(logits, batch)) == pytest.approx(np.mean(likelihoods), rel=1e-4)


def test_steps_hold_about_as_many_examples_in_every_epoch():
    sizes = [1, 5, 2, 8, 1, 1, 3, 20, 4]
    steps = step_batches(sizes, 6, 3, seed=1)
    assert sorted(index for step in steps for index in step) == sorted(list(range(9)) * 3)
    assert all(sum(sizes[index] for index in step) >= 6 for step in steps)
    assert step_batches(sizes, 6, 3, seed=1) == steps
    assert step_batches(sizes, 6, 3, seed=2) != steps
    part = step_batches(sizes, 6, 0.5, seed=1)
    assert 22 <= sum(sizes[index] for step in part for index in step) < 22 + 20
    assert step_batches([2, 2], 16, 1, seed=0) in ([[0, 1]], [[1, 0]])


@pytest.mark.parametrize("storage", ["pair", "pivoted_input", "pivoted_output"])
def test_balanced_factors_compute_the_same_and_get_their_storage_back(storage):
    torch.manual_seed(3)
    module = FactoredLinear(24, (16, 8), 6, storage, 2 if storage != "pair" else 0, bias=True)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    model, hidden = torch.nn.Sequential(module), torch.randn(5, 24)
    before = module.multiply(hidden)
    had = balance_(model)
    assert had == {"0": storage}
    assert module.storage == "pair"
    torch.testing.assert_close(module.multiply(hidden), before, rtol=1e-4, atol=1e-4)
    down, up = module.down.weight, module.up.weight
    torch.testing.assert_close(down @ down.T, up.T @ up, rtol=1e-3, atol=1e-3)
    assert restore_(model, had) == []
    assert module.storage == storage
    torch.testing.assert_close(module.multiply(hidden), before, rtol=1e-3, atol=1e-3)


def test_a_matrix_that_no_pivots_fit_stays_a_pair_and_says_so():
    module = FactoredLinear(8, (8,), 2)
    with torch.no_grad():
        # Only the first and the last input count, and those are no neighbours.
        module.down.weight.copy_(torch.eye(8)[[0, 7]])
        torch.nn.init.normal_(module.up.weight)
    assert restore_(torch.nn.Sequential(module), {"0": "pivoted_input"}) == [
        "0: no pivots with small coefficients any more, stored as a plain pair"
    ]
    assert module.storage == "pair"


def test_a_direction_that_was_lost_leaves_numbers():
    torch.manual_seed(3)
    module = FactoredLinear(8, (8,), 3)
    with torch.no_grad():
        torch.nn.init.normal_(module.down.weight)
        torch.nn.init.normal_(module.up.weight)
        module.up.weight[:, 1] = 0.0
    model, hidden = torch.nn.Sequential(module), torch.randn(5, 8)
    expected = module.multiply(hidden)
    assert restore_(model, {"0": "pair"}) == []
    torch.testing.assert_close(module.multiply(hidden), expected)


def test_being_too_sure_does_not_stop_training():
    labels = np.asarray([0, 1] * 50)
    scores = np.random.default_rng(0).normal(0.0, 1.0, (100, 2)) + np.eye(2)[labels]
    assert label_loss(4.0 * scores, labels) == pytest.approx(label_loss(scores, labels))
    assert label_loss(scores + np.array([0.7, -0.7]), labels) == pytest.approx(label_loss(scores, labels), abs=1e-3)
    better = scores + np.eye(2)[labels]
    assert label_loss(better, labels) < label_loss(scores, labels)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_model_that_overflows_is_refused_in_one_line(tmp_path, loss):
    trained = {"weight": torch.nn.Parameter(torch.ones(2))}
    with pytest.raises(CalibrationError, match=r"the selection split is (nan|inf) before the first step"):
        train(trained, lambda _: 0.0, lambda: loss, Schedule(2, 0.01, 1, 1), tmp_path / STATE, Progress())


def test_training_that_runs_into_numbers_that_are_none_goes_back_to_the_best(tmp_path):
    trained = {"weight": torch.nn.Parameter(torch.ones(2))}
    losses = iter([1.0, *[float("nan")] * 4])

    def descend(_):
        trained["weight"].grad = torch.full((2,), float("nan"))
        return float("nan")

    log = train(trained, descend, lambda: next(losses), Schedule(4, 0.01, 1, 9), tmp_path / STATE, Progress("json"))
    assert (log.best, log.best_step) == (1.0, 0)
    assert trained["weight"].tolist() == [1.0, 1.0]


def run(state, stop=None):
    model, (prefix, batches) = problem()
    trained = {"down": model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)}
    calls = []

    def descend(step):
        calls.append(step)
        if step == stop:
            raise Killed
        batch = batches[step % len(batches)]
        loss = answer_loss(answer_logits(model, prefix, batch), batch)
        loss.backward()
        return float(loss.detach())

    def evaluate():
        with torch.no_grad():
            return float(answer_loss(answer_logits(model, prefix, batches[0]), batches[0]))

    log = train(trained, descend, evaluate, Schedule(12, 0.01, 3, 100), state, Progress())
    return trained["down"].detach(), log, calls


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path):
    expected, log, _ = run(tmp_path / "whole")
    assert log.best < log.looks[0][2]
    with pytest.raises(Killed):
        run(tmp_path / STATE, stop=7)
    assert "log" not in load_file(tmp_path / STATE)
    found, again, calls = run(tmp_path / STATE)
    assert calls[0] in (3, 6), "it begins where it was saved"
    assert torch.equal(found, expected)
    assert again == log

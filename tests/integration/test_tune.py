"""Tuning: adapters end in the weights, an interrupted run ends as another, and what does not hold is not kept."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sieve_edge.artifacts import read_manifest
from sieve_edge.errors import CalibrationError
from sieve_edge.files import read_json, write_json
from sieve_edge.model.balance import balance_, restore_
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.matrices import count_params
from sieve_edge.progress import Progress
from sieve_edge.tune import keeps
from sieve_edge.tune.arithmetic import has_bfloat16
from sieve_edge.tune.batches import (
    answer_logits,
    answer_loss,
    distillation_loss,
    label_loss,
    make_batches,
    step_batches,
)
from sieve_edge.tune.training import STATE, Schedule, train
from tests.command import command
from tests.markup import check_page
from tests.tiny_gguf import TEXTS, TOKENIZER, make_model

QUICK = (
    "calibration_tokens=1500",
    "threads=1",
    "learn.fisher_prompts=64",
    "search.strategy=uniform",
    "tolerance=0.3",
    "tune.epochs=6",
    "tune.learning_rate=0.003",
    "tune.evaluate_every=10",
    "tune.batch_tokens=400",
)


def options(*settings):
    return [word for setting in (*QUICK, *settings) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def tuned(pico, toy_target, tmp_path_factory):
    pico("llama")
    folder = tmp_path_factory.mktemp("tuned") / "run"
    words = ("--target", toy_target, "--run-dir", folder, *options("tune.method=lora"))
    return folder, words, command("tune", *words)


def test_lora_lowers_the_loss_and_leaves_shapes_alone(tuned):
    folder, _, done = tuned
    assert done.returncode == 0, done.stderr
    metrics = read_manifest(folder / "tune").metrics
    looks = metrics["training"]["looks"]
    assert min(look[2] for look in looks) < looks[0][2]
    assert set(metrics["scores"]) == {"dense", "untuned", "tuned", "dense_tuned"}
    assert all(set(scored) == {"selection", "test", "transfer"} for scored in metrics["scores"].values())
    # The dense model here and the one that calibrate scored are the same.
    assert metrics["scores"]["dense"]["selection"] == pytest.approx(
        read_manifest(folder / "calibrate").metrics["dense_selection"]["corrected"]
    )
    assert metrics["dtype"] == "float32"
    assert metrics["kept"] == "tuned", done.stderr
    before, after = (load_checkpoint(folder / name, "cpu") for name in ("fuse", "tune"))
    assert count_params(before) == count_params(after)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (before, after)]
    assert shapes[0] == shapes[1]
    files = sorted(path.name for path in (folder / "tune").iterdir())
    assert "sieve_edge.json" in files
    assert not any("adapter" in name or name in ("work", "dense") for name in files)
    sidecars = [json.loads((folder / name / "sieve_edge.json").read_text()) for name in ("fuse", "tune")]
    assert sidecars[0]["prior"]["dense"] == sidecars[1]["prior"]["dense"]
    assert sidecars[1]["selection"]["pruned"] == metrics["scores"]["tuned"]["selection"]


@pytest.fixture(scope="module")
def built(tuned):
    """Folder of the same build, done to its end; tests below tune it in other ways."""
    folder, words, _ = tuned
    done = command("build", *words)
    assert done.returncode in (0, 4), done.stderr
    return folder


def test_the_tuned_factors_are_what_is_exported(built):
    exported = (built / "export" / "pruned" / "sieve_edge.json").read_bytes()
    assert exported == (built / "tune" / "sieve_edge.json").read_bytes()


def test_the_report_gives_the_losses_against_both_dense_models(built):
    scores = read_manifest(built / "tune").metrics["scores"]
    expected = {
        of: {split: 1.0 - scores["tuned"][split] / scores[of][split] for split in ("test", "transfer")}
        for of in ("dense", "dense_tuned")
    }
    told = read_json(built / "result.json")["tune"]
    for of, losses in expected.items():
        assert told["loss_against"][of] == pytest.approx(losses)
    page = check_page((built / "report.html").read_text(encoding="utf-8"))
    texts = [page.of("main")[0].text, (built / "report.md").read_text(encoding="utf-8")]
    for text in texts:
        assert "dense + same LoRA" in text
        assert "loss against dense + same LoRA" in text
        for losses in expected.values():
            assert f"test {losses['test']:.2%}, transfer {losses['transfer']:.2%}" in text
    rows = [line.split(" | ") for line in texts[1].splitlines() if line.startswith("| dense |")]
    assert rows[0][1:4] == [f"{scores['dense'][split]:.3f}" for split in ("selection", "test", "transfer")]


def test_tuning_that_does_not_hold_is_warned_of_in_red(built, tmp_path):
    told = read_json(built / "result.json")
    assert told["tune"]["transfer_holds"]
    assert 'class="warning">Tuning loses' not in (built / "report.html").read_text(encoding="utf-8")
    copied = shutil.copytree(built, tmp_path / "copy")
    told["tune"] |= {"transfer_holds": False, "transfer_lost": 0.4}
    write_json(copied / "result.json", told)
    done = command("report", copied, "--markdown", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    warning = "Tuning loses 40.00% on the transfer set, more than the tolerance."
    assert f'<span style="color: red">**{warning}**</span>' in done.stdout
    page = check_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    [shown] = [item for item in page.of("p") if item.text == warning]
    assert shown.attributes["class"] == "warning"
    assert re.search(r"\.warning \{ color: var\(--bad\)", page.of("style")[0].text)


def test_further_examples_are_trained_on_and_make_only_tune_run_again(tuned, toy_task, tmp_path):
    folder, words, _ = tuned
    assert read_manifest(folder / "tune").metrics["training"]["examples"] == 200
    tree = yaml.safe_load(toy_task.read_text())
    tree["splits"]["tuning"] = 20
    task = tmp_path / toy_task.name
    task.write_text(yaml.safe_dump(tree))
    done = command("tune", *words, "--task", task, *options("tune.method=lora", "tune.compare_dense=false"))
    assert done.returncode == 0, done.stderr
    assert all(f"{verb}: up to date" in done.stderr for verb in ("calibrate", "learn", "search", "fuse"))
    assert read_manifest(folder / "tune").metrics["training"]["examples"] == 220


@pytest.mark.parametrize("settings", [("tune.method=full_factors", "tune.loss=distil", "tune.learning_rate=0.0003")])
def test_the_factors_themselves_can_be_trained_towards_the_dense_model(tuned, settings):
    folder, words, _ = tuned
    more = [word for setting in (*settings, "tune.compare_dense=false") for word in ("--set", setting)]
    done = command("tune", *words, *more)
    assert done.returncode == 0, done.stderr
    metrics = read_manifest(folder / "tune").metrics
    assert set(metrics["scores"]) == {"dense", "untuned", "tuned"}
    assert metrics["training"]["trained_params"] > 0


def test_training_that_only_harms_leaves_the_untuned_factors(tuned):
    folder, words, _ = tuned
    # So fast that it unlearns at once.
    settings = ("tune.learning_rate=5.0", "tune.compare_dense=false", "tune.epochs=1")
    done = command("tune", *words, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    metrics = read_manifest(folder / "tune").metrics
    assert (metrics["training"]["best_step"], metrics["kept"]) == (0, "untuned")
    assert not (folder / "tune" / "config.json").exists()


@pytest.mark.parametrize(
    ("after", "best_step", "keep", "kept"),
    [
        ({"selection": 0.85, "transfer": 0.80}, 12, "auto", True),
        ({"selection": 0.85, "transfer": 0.70}, 12, "auto", False),
        ({"selection": 0.79, "transfer": 0.80}, 12, "auto", False),
        ({"selection": 0.85, "transfer": 0.70}, 12, "always", True),
        ({"selection": 0.85, "transfer": 0.80}, 0, "always", False),
    ],
)
def test_what_loses_on_another_source_is_not_kept(after, best_step, keep, kept):
    assert keeps({"selection": 0.8, "transfer": 0.8}, after, best_step, 0.05, keep) == kept


def test_transposed_weights_are_tuned_too(pico, toy_target, tmp_path):
    settings = options("tune.method=lora", "tune.epochs=1", "tune.compare_dense=true", "tune.dtype=auto")
    words = ("--target", toy_target, "--model", pico("gpt2"), "--run-dir", tmp_path / "run", *settings)
    done = command("tune", *words)
    assert done.returncode == 0, done.stderr
    metrics = read_manifest(tmp_path / "run" / "tune").metrics
    assert "dense_tuned" in metrics["scores"]
    assert metrics["dtype"] == ("bfloat16" if has_bfloat16("cpu") else "float32")
    assert np.isfinite([look[2] for look in metrics["training"]["looks"]]).all()


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

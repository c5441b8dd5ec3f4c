"""Tuning: adapters end in the weights, what does not hold is not kept, and the report compares like with like."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

import sieve_edge.tune
from sieve_edge.artifacts import read_manifest, read_plan
from sieve_edge.files import read_json, write_json
from sieve_edge.model.balance import whole_factors
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.factored import FactoredLinear
from sieve_edge.model.matrices import count_params
from sieve_edge.model.source import find_model
from sieve_edge.progress import Progress
from sieve_edge.resolve import load_recipe, load_target, load_task
from sieve_edge.run import Run
from sieve_edge.stages import STAGE_FUNCTIONS
from sieve_edge.tune import keeps
from sieve_edge.tune.arithmetic import has_bfloat16
from tests.command import command
from tests.markup import check_page

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
    # The same on every machine.
    "tune.dtype=float32",
)


def options(*settings):
    return [word for setting in (*QUICK, *settings) for word in ("--set", setting)]


def products(model):
    """What a pruned model's factors stand for, which is the same however they are stored."""
    factored = [module for module in model.modules() if isinstance(module, FactoredLinear) and module.rank > 0]
    assert factored
    return [up_OR @ down_RI for down_RI, up_OR in map(whole_factors, factored)]


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


def test_a_plan_may_lose_more_before_tuning_and_the_artifact_may_not(tuned, built, tmp_path):
    _, words, _ = tuned
    folder = tmp_path / "run"
    more = [word for setting in ("search.tolerance=0.45", "tolerance=0.02") for word in ("--set", setting)]
    done = command("build", *words, "--run-dir", folder, *more)
    assert done.returncode in (0, 4), done.stderr
    result, before = (read_json(run / "result.json") for run in (folder, built))
    assert result["kept_fraction"]["linears"] <= before["kept_fraction"]["linears"]
    assert read_plan(folder / "search").accept.endswith("at most 0.45")
    [check] = [check for check in result["checks"] if check["name"] == "loss_test"]
    assert check["limit"] == 0.02
    assert "a loss of the tolerance" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("settings", [("tune.method=full_factors", "tune.loss=distil", "tune.learning_rate=0.0003")])
def test_the_factors_themselves_can_be_trained_towards_the_dense_model(tuned, settings):
    folder, words, _ = tuned
    settings = (*settings, "tune.compare_dense=false", "tune.keep=always")
    more = [word for setting in settings for word in ("--set", setting)]
    done = command("tune", *words, *more)
    assert done.returncode == 0, done.stderr
    metrics = read_manifest(folder / "tune").metrics
    assert set(metrics["scores"]) == {"dense", "untuned", "tuned"}
    assert metrics["kept"] == "tuned", done.stderr
    losses = [look[1] for look in metrics["training"]["looks"][1:]]
    assert losses[-1] < losses[0]
    before, after = (load_checkpoint(folder / name, "cpu") for name in ("fuse", "tune"))
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (before, after)]
    assert shapes[0] == shapes[1]
    # Far more than writing the same factors in another form changes.
    for old, new in zip(products(before), products(after), strict=True):
        assert float((new - old).norm() / old.norm()) > 1e-3


def test_training_that_only_harms_leaves_the_untuned_factors(tuned):
    folder, words, _ = tuned
    # So fast that it unlearns at once.
    settings = ("tune.learning_rate=5.0", "tune.compare_dense=false", "tune.epochs=1")
    done = command("tune", *words, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    metrics = read_manifest(folder / "tune").metrics
    assert (metrics["training"]["best_step"], metrics["kept"]) == (0, "untuned")
    assert not (folder / "tune" / "config.json").exists()


@pytest.mark.parametrize(("transfer", "verb"), [(0.70, "fuse"), (0.80, "tune")])
def test_the_next_stage_reads_untuned_factors_where_tuned_ones_lose_on_transfer(
    tuned, pico, toy_target, toy_task, tmp_path, monkeypatch, transfer, verb
):
    root = tmp_path / "run"
    shutil.copytree(tuned[0] / "fuse", root / "fuse")
    (root / "tune").mkdir()
    before = {"selection": 0.8, "test": 0.8, "transfer": 0.8}
    scored = {"dense": before, "untuned": before, "tuned": {"selection": 0.85, "test": 0.85, "transfer": transfer}}
    monkeypatch.setattr(sieve_edge.tune.Scorer, "scores", lambda _, model, name, known=None: (scored[name], []))
    monkeypatch.setattr(sieve_edge.tune, "tune_model", trained_at_once)
    settings = ("threads=1", "tolerance=0.05", "tune.method=lora", "tune.keep=auto", "tune.compare_dense=false")
    source, target = find_model(str(pico("llama"))), load_target(str(toy_target))
    run = Run(source, load_task(str(toy_task)), target, load_recipe(settings), root, Progress())
    metrics, _ = STAGE_FUNCTIONS["tune"](run, run.folder("tune"))
    assert metrics["transfer_holds"] == (verb == "tune")
    assert run.checkpoint() == run.checkpoint(("tune",)) == root / verb
    untuned, read = (load_checkpoint(folder, "cpu") for folder in (root / "fuse", run.checkpoint()))
    same = [torch.equal(old, new) for old, new in zip(products(untuned), products(read), strict=True)]
    assert all(same) if verb == "fuse" else not any(same)


def trained_at_once(model, *_):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model, {"best_step": 12, "dtype": "float32", "fallbacks": []}


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

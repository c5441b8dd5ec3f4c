"""Pico models of every family through the real command line, down to the validated artifact."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sieve_edge import STAGES
from sieve_edge.artifacts import read_manifest
from sieve_edge.files import read_json
from sieve_edge.model.levels import factored_params
from tests.command import command, last_json
from tests.pico import FAMILIES

QUICK = ("--set", "calibration_tokens=1500", "--set", "threads=1", "--set", "learn.fisher_prompts=64")
KEYS = (
    *(
        "passed",
        "artifact",
        "report",
        "workload.prompt_tokens",
        "workload.answer_tokens",
        "max_logit_difference",
        "drift.kl",
        "drift.top1",
    ),
    *(
        "kept_fraction.linears",
        "kept_fraction.model",
        "accuracy.baseline.score",
        "seconds.calibrate",
        "seconds.validate",
    ),
    *("loss.test", "loss.transfer", "loss.interval95", "size_mib.source", "size_mib.dense", "size_mib.pruned"),
    *("peak_memory_mib.dense", "peak_memory_mib.pruned"),
)
TIMES = (
    *("time_per_answer_ms", "time_to_first_token_ms", "time_per_token_p50_ms", "time_per_token_p95_ms"),
    *("tokens_per_s", "prompt_tokens_per_s"),
)


def build(pico, toy_task, toy_target, family, folder, *more):
    options = ("--target", toy_target, "--task", toy_task, "--model", pico(family), "--run-dir", folder)
    return command("build", *options, *QUICK, *more)


def look_up(document, path):
    for name in path.split("."):
        document = document[name]
    return document


@pytest.fixture(scope="session")
def built(pico, toy_task, toy_target, tmp_path_factory):
    """Function from a family to ``(folder of its run, finished process)``; built once."""
    runs = {}

    def find(family):
        if family not in runs:
            folder = tmp_path_factory.mktemp("runs") / family
            runs[family] = (folder, build(pico, toy_task, toy_target, family, folder))
        return runs[family]

    return find


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_ends_in_an_artifact_that_keeps_the_task(built, family):
    _, done = built(family)
    # A model of 32 features is often not faster when pruned; every other limit must be met.
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    failed = {check["name"] for check in result["checks"] if not check["passed"]}
    assert failed <= {"faster", "loss_test"}, done.stderr
    assert result["kept_fraction"]["linears"] < 1.0
    assert result["loss"]["selection"] <= 0.05 + 1e-9
    assert result["accuracy"]["dense"]["test"]["corrected"] > 0.8
    assert result["max_logit_difference"] <= 5e-3
    assert result["fallbacks"] == []
    assert (Path(result["artifact"]) / "model.onnx").is_file()
    assert Path(result["report"]).is_file()
    for path in KEYS:
        look_up(result, path)
    for name in ("dense", "pruned"):
        for time in TIMES:
            assert result["timing"][name][time] > 0
        for split in ("test", "transfer"):
            assert 0 <= result["accuracy"][name][split]["raw"] <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stack_stores_its_shared_projection_once_and_counts_agree(built, family):
    folder, _ = built(family)
    config = json.loads((folder / "fuse" / "config.json").read_text())
    with safe_open(folder / "fuse" / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    stored = sum(int(torch.tensor(shape).prod()) for shape in shapes.values())
    metrics = read_manifest(folder / "fuse").metrics
    assert stored == metrics["params"]
    for entry in config["layout"].values():
        mine = [name for name in shapes if any(name.startswith(path + ".") for path in entry["paths"])]
        weights = [name for name in mine if name.endswith("weight")]
        assert len(weights) == 2, "one projection of the input and one expansion for the whole stack"
        out_features = sum(entry["part_features"])
        storage = "pair" if entry["storage"] == "pair" else "pivoted"
        expected = factored_params(entry["rank"], out_features, entry["in_features"], storage)
        assert sum(shapes[name][0] * shapes[name][1] for name in weights) == expected


def test_a_second_call_only_prints_the_result(built, pico, toy_task, toy_target):
    folder, first = built("llama")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    second = build(pico, toy_task, toy_target, "llama", folder)
    assert second.returncode == first.returncode
    assert last_json(second) == last_json(first)
    assert second.stderr.count("up to date") == len(STAGES)
    assert "loading" not in second.stderr
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    assert after == before


def test_the_same_seed_gives_the_same_plan_and_weights(built, pico, toy_task, toy_target, tmp_path):
    folder, _ = built("llama")
    again = tmp_path / "again"
    build(pico, toy_task, toy_target, "llama", again)
    assert read_json(again / "search" / "plan.json") == read_json(folder / "search" / "plan.json")
    for verb in ("calibrate", "learn", "fuse"):
        assert read_manifest(again / verb).outputs == read_manifest(folder / verb).outputs


def test_a_plan_of_all_ones_changes_no_bit(pico, toy_task, toy_target, tmp_path):
    folder = tmp_path / "dense"
    settings = ("grid=[1.0, 0.05]", "search.strategy=uniform", "search.resolution=0.99", "tolerance=1e-9")
    done = build(pico, toy_task, toy_target, "llama", folder, *[word for item in settings for word in ("--set", item)])
    plan = read_json(folder / "search" / "plan.json")
    assert set(plan["ranks"].values()) == {None}, "the smallest level must not pass at no tolerance"
    assert "the model stays dense" in done.stderr
    with (
        safe_open(folder / "fuse" / "model.safetensors", framework="pt") as fused,
        safe_open(pico("llama") / "model.safetensors", framework="pt") as dense,
    ):
        assert set(fused.keys()) == set(dense.keys())
        for name in dense.keys():  # noqa: SIM118
            assert torch.equal(fused.get_tensor(name), dense.get_tensor(name))


@pytest.mark.parametrize("method", ["gradient", "weight_svd", "input_pca"])
def test_every_method_goes_through_the_same_pipeline(pico, toy_task, toy_target, tmp_path, method):
    settings = (f"learn.method={method}", "learn.gradient_steps=20", "grid=[1.0, 0.75, 0.5]")
    more = [word for setting in settings for word in ("--set", setting)]
    options = ("--target", toy_target, "--task", toy_task, "--model", pico("qwen2"), "--run-dir", tmp_path / "run")
    done = command("fuse", *options, *QUICK, *more)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "run" / "learn").metrics["method"] == method
    assert last_json(done)["metrics"]["selection"]["corrected"] >= 0.5


def test_plain_pairs_go_through_too(pico, toy_task, toy_target, tmp_path):
    target = tmp_path / "pair.yaml"
    target.write_text(toy_target.read_text() + "storage: pair\n")
    done = build(pico, toy_task, target, "llama", tmp_path / "run")
    assert done.returncode in (0, 4), done.stderr
    layout = json.loads((tmp_path / "run" / "fuse" / "config.json").read_text())["layout"]
    assert {entry["storage"] for entry in layout.values()} <= {"pair"}


def test_inspect_tells_the_parts_of_an_onnx_folder(built):
    folder, _ = built("llama")
    plan = read_json(folder / "search" / "plan.json")
    facts = last_json(command("inspect", folder / "export" / "pruned"))
    assert (facts["format"], facts["loads_in"][0]) == ("onnx", "onnxruntime")
    ranks = {rank for rank in plan["ranks"].values() if rank is not None}
    assert ranks
    assert set(facts["ranks"].values()) == ranks
    assert len(facts["ranks"]) == sum(rank is not None for rank in plan["ranks"].values())
    assert set(facts["parts"]) >= {"embedding", "attention", "mlp", "norms"}
    assert facts["bits_per_weight"] == 32.0

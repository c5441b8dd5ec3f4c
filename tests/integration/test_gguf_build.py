"""The whole pipeline to a GGUF file on a pico model, through the real command line."""

import json

import pytest
import yaml

from sieve_edge.artifacts import read_manifest, read_plan
from tests.command import command, last_json
from tests.markup import check_page
from tests.pico import make_bpe_tokenizer, make_pico, write_target
from tests.servers import serving

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

QUICK = ("--set", "calibration_tokens=1500", "--set", "threads=1", "--set", "learn.fisher_prompts=64")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_pico("llama", tmp_path_factory.mktemp("model") / "llama", seed=3, tokens=make_bpe_tokenizer())


def build(folder, model, task, **fields):
    llama = {"format": "gguf", "runtime": "llama.cpp", "quantization": "F16", "storage": "pair"}
    target = write_target(folder, model, task, **{"name": "toy-gguf", **llama, **fields})
    options = ("--target", target, "--run-dir", folder / "run", *QUICK)
    return folder / "run", options, command("build", *options)


@pytest.fixture(scope="module")
def built(toy_task, model, tmp_path_factory):
    return build(tmp_path_factory.mktemp("gguf"), model, toy_task)


def test_the_file_is_served_and_scores_what_validate_said(built, toy_task):
    folder, _, done = built
    with serving(folder) as address:
        scored = command("evaluate", "--endpoint", address, "--task", toy_task)
    assert scored.returncode == 0, scored.stderr
    # Scored one by one there and in batches here, and llama.cpp's cache holds 16 bits.
    expected = last_json(done)["accuracy"]["pruned"]["test"]["corrected"]
    assert last_json(scored)["score"] == pytest.approx(expected, abs=0.011)


@pytest.fixture(scope="module")
def stock(toy_task, model, tmp_path_factory):
    return build(tmp_path_factory.mktemp("stock"), model, toy_task, runtime="llama.cpp-stock", storage="width")


def test_a_build_ends_in_a_file_that_llama_cpp_scored_and_timed(built):
    folder, _, done = built
    # A model this small need not be faster.
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    assert result["kept_fraction"]["linears"] < 1.0
    assert result["accuracy"]["dense"]["test"]["corrected"] > 0.8
    checks = {check["name"]: check for check in result["checks"]}
    assert checks["kl_from_pytorch"]["passed"], checks
    assert checks["kl_from_pytorch"]["measured"] == result["drift"]["kl"]
    assert result["size_mib"]["dense"] > 0.0
    assert result["timing"]["pruned"]["tokens_per_s"] > 0.0
    metrics = read_manifest(folder / "export").metrics
    assert metrics["max_logit_difference"]["pruned"] < 1e-3
    for name, types in metrics["types"].items():
        assert set(types) == {"F16", "F32"}
        first, second = sorted(types, key=types.__getitem__, reverse=True)
        assert f"  {name}: {types[first]} {first}, {types[second]} {second} tensors" in done.stderr
    assert metrics["factored"]["pruned"] > 0
    assert metrics["factored"]["dense"] == 0
    check_page((folder / "report.html").read_text(encoding="utf-8"))
    assert command("card", folder).returncode == 0
    assert "stock llama.cpp refuses" in (folder / "export" / "pruned" / "README.md").read_text(encoding="utf-8")


def test_inspect_says_what_was_built(built):
    folder, _, _ = built
    for name, runtime in (("pruned", "factored-weights.patch"), ("dense", "llama.cpp")):
        done = command("inspect", folder / "export" / name)
        assert done.returncode == 0, done.stderr
        facts = last_json(done)
        assert (facts["format"], facts["architecture"]) == ("gguf", "llama")
        assert runtime in facts["loads_in"][0]
        assert bool(facts["ranks"]) == (name == "pruned")
        assert facts["types"]["F16"] > 0
        assert 16.0 <= facts["bits_per_weight"] < 17.0
        assert set(facts["parts"]) == {"embedding", "norms", "attention", "mlp"}


def test_what_a_gguf_target_cannot_have_is_refused_before_anything_expensive(built, tmp_path):
    _, options, _ = built
    known = yaml.safe_load(options[1].read_text(encoding="utf-8"))
    (tmp_path / "mixed.yaml").write_text(json.dumps(known | {"quantization": "Q4_K_M"}), encoding="utf-8")
    wanted = ("--set", "search.allow_skip=true")
    done = command("build", options[0], tmp_path / "mixed.yaml", *options[2:], *wanted)
    assert done.returncode == 3
    assert "search.allow_skip" in done.stderr
    assert "rank_multiple: 2 of target toy-gguf, must be a multiple of 256 for quantization Q4_K_M" in done.stderr
    target = known | {"storage": "pivoted", "runtime": "onnxruntime"}
    (tmp_path / "bad.yaml").write_text(json.dumps(target), encoding="utf-8")
    done = command("build", "--target", tmp_path / "bad.yaml")
    assert done.returncode == 3
    assert "runtime: onnxruntime, must be llama.cpp or llama.cpp-stock for format gguf" in done.stderr
    assert "storage: pivoted, must be pair or width for format gguf" in done.stderr
    (tmp_path / "bad.yaml").write_text(json.dumps(target | {"runtime": "llama.cpp"}), encoding="utf-8")
    done = command("build", "--target", tmp_path / "bad.yaml")
    assert "storage: pivoted, must be pair for format gguf and runtime llama.cpp" in done.stderr


def test_inspect_refuses_what_is_neither(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUX" * 10)
    for path in (tmp_path, tmp_path / "x.gguf"):
        done = command("inspect", path)
        assert done.returncode == 3
        assert len(done.stderr.splitlines()) == 1


def test_a_build_for_stock_llama_cpp_ends_in_narrow_layers(stock):
    folder, options, done = stock
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    kept = result["kept_fraction"]
    assert kept["linears"] < 1.0
    assert result["accuracy"]["dense"]["test"]["corrected"] > 0.8
    plan = read_plan(folder / "search")
    assert plan.storage == "width"
    assert {name.split(".")[1] for name in plan.ranks} == {"o", "down"}
    facts = last_json(command("inspect", folder / "export" / "pruned"))
    assert (facts["architecture"], facts["loads_in"], facts["ranks"]) == ("deci", ["llama.cpp"], {})
    dense = last_json(command("inspect", folder / "export" / "dense"))
    assert facts["params"] / dense["params"] == pytest.approx(kept["model"], abs=1e-6)
    page = check_page((folder / "report.html").read_text(encoding="utf-8"))
    assert "Widths are pruned" in page.of("main")[0].text
    assert command("card", folder).returncode == 0
    card = (folder / "export" / "pruned" / "README.md").read_text(encoding="utf-8")
    assert "Any llama.cpp that knows the architecture" in card
    again = command("build", *options)
    assert last_json(again) == result
    assert "learn took" not in again.stderr


def test_what_width_pruning_cannot_have_is_refused(stock, pico, tmp_path):
    _, options, _ = stock
    done = command("build", *options, "--set", "learn.method=weight_svd")
    assert done.returncode == 3
    assert "learn.method: weight_svd, must be closed_form for storage width" in done.stderr
    done = command("build", *options, "--model", pico("qwen2"), "--run-dir", tmp_path / "run")
    assert done.returncode == 3
    assert "takes no layers of different widths (only llama, mistral)" in done.stderr
    done = command("export", *options, "--merged")
    assert done.returncode == 2
    assert "--merged is for format gguf with storage pair" in done.stderr


def test_merged_writes_a_file_without_factors(built):
    folder, options, _ = built
    done = command("export", *options, "--merged")
    assert done.returncode == 0, done.stderr
    told = last_json(done)["merged"]
    assert told["max_logit_difference"] < 1e-3
    assert "as large and as slow as the dense model" in done.stderr
    facts, dense = (last_json(command("inspect", path)) for path in (folder / "merged", folder / "export" / "dense"))
    assert (facts["loads_in"], facts["ranks"], facts["params"]) == (["llama.cpp"], {}, dense["params"])

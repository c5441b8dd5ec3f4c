"""The whole pipeline to a GGUF file on a pico model, through the real command line."""

import json

import pytest
import yaml

from sieve_edge.artifacts import read_manifest
from tests.command import command, last_json
from tests.pico import make_bpe_tokenizer, make_pico

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

QUICK = ("--set", "calibration_tokens=1500", "--set", "threads=1", "--set", "learn.fisher_prompts=64")


@pytest.fixture(scope="module")
def built(toy_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model = make_pico("llama", folder / "llama", seed=3, tokens=make_bpe_tokenizer())
    target = {
        "name": "toy-gguf",
        "description": "This machine, one thread, llama.cpp.",
        "format": "gguf",
        "runtime": "llama.cpp",
        "quantization": "F16",
        "storage": "pair",
        "threads": 1,
        "rank_multiple": 2,
        "rank_multiple_reason": "Matrices of 32 features need levels between the pruning factors.",
        "workload": {"decode_tokens": 4, "repeats": 3},
        "model": str(model),
        "task": str(toy_task),
    }
    (folder / "toy-gguf.yaml").write_text(yaml.safe_dump(target), encoding="utf-8")
    options = ("--target", folder / "toy-gguf.yaml", "--run-dir", folder / "run", *QUICK)
    return folder / "run", options, command("build", *options)


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
    assert metrics["factored"]["pruned"] > 0
    assert metrics["factored"]["dense"] == 0


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
    done = command("build", *options, "--set", "search.allow_skip=true", "--set", "search.max_time_per_answer_ms=5")
    assert done.returncode == 3
    assert "search.allow_skip" in done.stderr
    assert "there is no time table for format gguf" in done.stderr
    target = yaml.safe_load(options[1].read_text(encoding="utf-8")) | {"storage": "pivoted", "runtime": "onnxruntime"}
    (tmp_path / "bad.yaml").write_text(json.dumps(target), encoding="utf-8")
    done = command("build", "--target", tmp_path / "bad.yaml")
    assert done.returncode == 3
    assert "runtime: onnxruntime, must be llama.cpp for format gguf" in done.stderr
    assert "storage: pivoted, must be pair for format gguf" in done.stderr


def test_inspect_refuses_what_is_neither(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUX" * 10)
    for path in (tmp_path, tmp_path / "x.gguf"):
        done = command("inspect", path)
        assert done.returncode == 3
        assert len(done.stderr.splitlines()) == 1

"""A smaller vocabulary through the real command line, to both formats."""

from dataclasses import replace

import pytest

from sieve_edge.artifacts import read_manifest
from sieve_edge.files import read_json
from sieve_edge.model.load import load_model
from sieve_edge.model.source import find_model
from sieve_edge.resolve import load_recipe, load_task
from sieve_edge.task.examples import TUNING, load_splits
from sieve_edge.vocabulary import smaller_vocabulary
from tests.command import command, last_json
from tests.markup import check_page
from tests.pico import make_bpe_tokenizer, make_pico, write_target

QUICK = ("calibration_tokens=1500", "threads=1", "learn.fisher_prompts=64", "search.strategy=uniform", "tolerance=0.3")
OTHER = "submarine volcano parliament orchestra telescope harvest blanket lantern"
FORMATS = {
    "onnx": {"runtime": "onnxruntime", "storage": "pair", "quantization": "int8"},
    "gguf": {"runtime": "llama.cpp", "storage": "pair", "quantization": "F16"},
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    fields = {"tie_word_embeddings": request.param}
    return make_pico("llama", folder, seed=3, tokens=make_bpe_tokenizer(OTHER), **fields)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_pruned_model_has_fewer_tokens_and_does_the_task(format_, model, toy_task, tmp_path):
    if format_ == "gguf":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")
    target = write_target(tmp_path, model, toy_task, format=format_, **FORMATS[format_])
    settings = [word for setting in (*QUICK, "vocabulary.keep=auto") for word in ("--set", setting)]
    done = command("build", "--target", target, "--run-dir", tmp_path / "run", *settings)
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    metrics = read_manifest(tmp_path / "run" / "vocabulary").metrics
    assert 256 < metrics["tokens"]["after"] < metrics["tokens"]["before"]
    assert all(metrics["changed"][name] == {"texts": 0.0, "tokens": 0.0} for name in ("calibration", "selection"))
    assert metrics["changed"]["test"]["tokens"] >= 0.0
    for split in ("test", "transfer"):
        whole, now = (metrics["scores"][name][split] for name in ("whole", "trimmed"))
        assert metrics["lost"][split] == pytest.approx(1.0 - now / whole)
        # The tokens were chosen by texts of the same kind, so that little changes.
        assert abs(now - whole) < 0.05
    assert result["vocabulary"] == {name: metrics[name] for name in ("tokens", "changed", "scores", "lost")}
    config = read_json(tmp_path / "run" / "vocabulary" / "config.json")["base"]
    assert config["vocab_size"] == metrics["tokens"]["after"]
    facts = [last_json(command("inspect", tmp_path / "run" / "export" / kind)) for kind in ("dense", "pruned")]
    parts = [{part: size for part, size in of["parts"].items() if part in ("embedding", "head")} for of in facts]
    assert ("head" in parts[0]) == (not read_json(model / "config.json")["tie_word_embeddings"])
    assert parts[0].keys() == parts[1].keys()
    assert all(parts[1][part] < parts[0][part] for part in parts[0])
    checks = {check["name"]: check["passed"] for check in result["checks"]}
    assert checks["kl_from_pytorch"], result["checks"]
    assert result["accuracy"]["pruned"]["test"]["corrected"] > 0.6
    assert result["accuracy"]["dense"]["test"]["corrected"] > 0.8
    page = check_page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    told = page.of("main")[0].text
    assert f"kept {metrics['tokens']['after']:,} of {metrics['tokens']['before']:,} tokens" in told
    assert (" by gptq, " in told) == (format_ == "onnx"), "of int8 both ways of rounding are measured"
    counts = read_manifest(tmp_path / "run" / "quantize").metrics["weights"]
    assert set(counts) == ({"dense", "pruned"} if format_ == "onnx" else set())
    if format_ == "onnx":
        taken = ", ".join(f"{count} weights by {method}" for method, count in counts["pruned"].items())
        assert f"int8: rounded {taken}; relative squared error" in told
    for split in ("test", "transfer"):
        changed, scores = metrics["changed"][split], metrics["scores"]
        assert (
            f"{changed['texts']:.1%} of the {split} texts are split otherwise, {changed['tokens']:+.2%} tokens" in told
        )
        assert f"accuracy {scores['trimmed'][split]:.3f} in place of {scores['whole'][split]:.3f}" in told


def test_tuning_texts_and_the_first_tokens_are_kept_too(model, toy_task):
    loaded, task = load_model(find_model(str(model)), "cpu"), load_task(str(toy_task))
    splits = load_splits(task, 0)
    recipe = load_recipe(("vocabulary.keep=auto",))
    plain = smaller_vocabulary(loaded, task, splits, recipe)
    tuned_on = {**splits, TUNING: (replace(splits["calibration"][0], prompt=f"Text: {OTHER}"),)}
    more = smaller_vocabulary(loaded, task, tuned_on, recipe)
    assert set(plain.kept) < set(more.kept)
    assert more.changed[TUNING] == {"texts": 0.0, "tokens": 0.0}
    assert len(more.encode(f"Text: {OTHER}")) < len(plain.encode(f"Text: {OTHER}"))
    count = loaded.backend.get_vocab_size() - 10
    assert not set(range(count)) <= set(plain.kept)
    first = smaller_vocabulary(
        loaded, task, splits, load_recipe(("vocabulary.keep=auto", f"vocabulary.first_tokens={count}"))
    )
    assert set(range(count)) | set(plain.kept) <= set(first.kept)

"""Smaller numbers: what the plan says is what the files hold, and the runtimes compute what the numbers stand for."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sieve_edge.config import BITS
from sieve_edge.device.inspect import inspect_path
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.reference import DRIFT
from sieve_edge.errors import ConfigError
from sieve_edge.export import export
from sieve_edge.export.gguf_folder import TYPES
from sieve_edge.export.to_gguf import gguf_origins
from sieve_edge.files import read_json
from sieve_edge.model.blocks import Blocks, restore
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.matrices import count_params
from sieve_edge.progress import Progress
from sieve_edge.quantize import quantize
from sieve_edge.recipe import QuantizeRecipe
from sieve_edge.resolve import load_target
from tests.tiny_gguf import TEXTS, TOKENIZER, factor, make_model, target

PROMPTS = [TOKENIZER.encode(text) for text in TEXTS]
TOKENIZERS, SEEN = dict.fromkeys(("dense", "pruned"), TOKENIZER), dict.fromkeys(("dense", "pruned"), PROMPTS)


def run(model, sieved, wanted, out, **recipe):
    (out / "plan").mkdir()
    models = {"dense": model, "pruned": sieved}
    metrics, fallbacks = quantize(models, SEEN, wanted, QuantizeRecipe(**recipe), out / "plan", Progress())
    exported, changed = export(
        models, TOKENIZERS, TEXTS[:2], "toy", out / "plan", wanted, out / "export", lambda _: None
    )
    return metrics, fallbacks, exported, changed


def restored(model, folder, kind, bits):
    """The model that the codes stand for, in PyTorch."""
    from safetensors.torch import load_file

    stored, same = load_file(folder / f"{kind}.safetensors"), copy.deepcopy(model)
    for name, parameter in same.named_parameters():
        if f"{name}.codes" in stored:
            packed = stored[f"{name}.codes"]
            codes = packed if bits == 8 else torch.stack([packed & 15, packed >> 4], dim=-1)
            blocks = Blocks(codes.flatten(1), stored[f"{name}.scales"], bits)
            parameter.copy_(restore(blocks, parameter.shape[1]))
    return same


def logits(model, ids):
    rows = np.asarray([ids], dtype=np.int64)
    return model.forward(rows, np.ones_like(rows), np.arange(len(ids))[None], [], 0)[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_onnx_blocks_are_computed_as_what_they_stand_for(quantization, tied, tmp_path):
    model = make_model("llama", tie_word_embeddings=tied)
    pairs, _ = factor(model, "llama", rank=24)
    wanted = target("onnx", quantization)
    metrics, fallbacks, exported, _ = run(model, pairs, wanted, tmp_path)
    assert fallbacks == ()
    bits = BITS[quantization]
    for kind, source in (("dense", model), ("pruned", pairs)):
        folder = tmp_path / "export" / kind
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        operations = [node.op_type for node in graph.node]
        linears = sum(isinstance(module, nn.Linear) for module in source.modules())
        assert operations.count("MatMulNBits") == linears
        assert operations.count("GatherBlockQuantized") == 1
        assert "Gemm" not in operations, "the head is quantized too"
        large = [value.name for value in graph.initializer if len(value.dims) == 2 and value.data_type == 1]
        assert all(name.endswith(".scales") for name in large)
        same, quantized = restored(source, tmp_path / "plan", kind, bits), OrtTextModel(folder, 1)
        expected, found = logits(TorchTextModel(same, "cpu"), PROMPTS[0]), logits(quantized, PROMPTS[0])
        spread = np.ptp(logits(TorchTextModel(source, "cpu"), PROMPTS[0]))
        # Inputs are rounded to 8 bits on the way.
        assert np.abs(found - expected).max() < 0.05 * spread
        assert exported["max_logit_difference"][kind] < 1e-3
        facts = inspect_path(folder)
        assert facts["params"] == count_params(source)
        operators = "onnxruntime, with its own operators GatherBlockQuantized, MatMulNBits"
        assert facts["loads_in"] == [operators, "optimum (ORTModelForCausalLM)", "onnxruntime-genai"]
        # Rows of the pruned model's second factors, 24 numbers, are padded to 32.
        limit = bits + 2.0 if kind == "dense" else bits + 3.0
        assert bits <= facts["bits_per_weight"] < limit
        assert facts["types"][quantization] == linears + (0 if tied else 1)
        assert len(facts["ranks"]) == (8 if kind == "pruned" else 0)
        assert read_json(folder / DRIFT) == exported["quantized"][kind]
        assert 0.0 < exported["quantized"][kind]["kl"] < 0.1
    assert metrics["mean_error"]["dense"] > 0.0


def test_calibrated_rounding_drifts_less(tmp_path, capsys):
    model = make_model("llama")
    errors = {}
    for method in ("nearest", "gptq"):
        folder = tmp_path / method
        folder.mkdir()
        models = {"dense": model, "pruned": model}
        wanted = target("onnx", "int4")
        metrics, _ = quantize(models, SEEN, wanted, QuantizeRecipe(method=method), folder, Progress())
        plan = read_json(folder / "plan.json")["weights"]["dense"]
        rounded = [entry for entry in plan.values() if "method" in entry]
        assert {entry["method"] for entry in rounded} <= {method, "nearest"}
        # What was measured of each way stays in the plan, of the one that was not taken too.
        assert all(entry["error"] == min(entry["errors"].values()) for entry in rounded)
        counts = {each: sum(entry["method"] == each for entry in rounded) for each in sorted({method, "nearest"})}
        assert metrics["weights"] == {"dense": counts, "pruned": counts}
        told = ", ".join(f"{count} by {each}" for each, count in counts.items())
        assert f"dense: weights rounded: {told}; mean error " in capsys.readouterr().err
        both = [entry["errors"] for entry in rounded if len(entry["errors"]) == 2]
        found = metrics["mean_error_by_method"]["dense"]
        assert set(found) == {method, "nearest"}
        if method == "gptq":
            assert len(both) == len(rounded) - 2, "embedding and head, which few positions show, are rounded only"
            for each, mean in found.items():
                assert mean == pytest.approx(np.mean([entry[each] for entry in both]))
            assert found["gptq"] < found["nearest"]
        same = restored(model, folder, "dense", 4)
        difference = logits(TorchTextModel(same, "cpu"), PROMPTS[0]) - logits(TorchTextModel(model, "cpu"), PROMPTS[0])
        errors[method] = float(np.square(difference).mean())
    assert errors["gptq"] < errors["nearest"]


def test_halves_are_stored_and_computed_in_float32(tmp_path):
    model = make_model("qwen2")
    run(model, factor(model, "qwen2")[0], target("onnx", "F16"), tmp_path)
    folder = tmp_path / "export" / "dense"
    stored = {
        value.name: value for value in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    }
    halves = [name for name, value in stored.items() if value.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == sum(parameter.dim() == 2 for parameter in model.parameters())
    assert 0.0 < read_json(folder / DRIFT)["kl"] < 1e-4


@pytest.mark.parametrize(("quantization", "plain"), [("F32", True), ("F16", True), ("int8", False)])
def test_a_graph_for_tensorrt_holds_standard_operators_only(quantization, plain, tmp_path):
    board = load_target("jetson-orin-trt")
    model = make_model("llama")
    wanted = board.model_copy(update={"quantization": quantization})
    run(model, factor(model, "llama", rank=32)[0], wanted, tmp_path)
    for kind in ("dense", "pruned"):
        found = onnx.load(tmp_path / "export" / kind / "model.onnx", load_external_data=False)
        domains = {node.domain or "ai.onnx" for node in _nodes(found.graph)}
        domains |= {item.domain or "ai.onnx" for item in found.opset_import}
        # Blocks of 8 bits need contributed operators, so the set does tell.
        assert (domains == {"ai.onnx"}) is plain
        assert not found.functions


def _nodes(graph):
    """Nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def test_weights_that_do_not_fit_are_named_and_refused(tmp_path, capsys):
    model = make_model("llama")
    pairs, _ = factor(model, "llama", rank=24)
    wanted = target("gguf", "Q8_0")
    with pytest.raises(
        ConfigError, match=r"pruned: model\.layers\.0\.self_attn\.q_proj\.up\.weight: not Q8_0"
    ) as caught:
        quantize({"dense": model, "pruned": pairs}, SEEN, wanted, QuantizeRecipe(), tmp_path, Progress())
    assert "quantize.allow_fallback=true" in str(caught.value)
    assert not (tmp_path / "plan.json").exists()
    capsys.readouterr()
    models, allowing = {"dense": model, "pruned": pairs}, QuantizeRecipe(allow_fallback=True)
    _, fallbacks = quantize(models, SEEN, wanted, allowing, tmp_path, Progress("quiet"))
    misfits = [name for name, _ in pairs.named_parameters() if ".up." in name]
    assert len(fallbacks) == len(misfits)
    title, head, *rows = capsys.readouterr().err.splitlines()
    assert title == f"  {len(misfits)} weights cannot have the type Q8_0, which the recipe allows:"
    assert head.split() == ["model", "weight", "shape", "type", "why"]
    assert [row.split()[:2] for row in rows] == [["pruned", name] for name in misfits]
    assert all(row.endswith("since its rows of 24 are no multiple of 32") for row in rows)


def test_the_table_of_misfits_comes_before_anything_is_written(tmp_path):
    model = make_model("llama")
    pairs, _ = factor(model, "llama", rank=24)
    there = []

    class Watching(Progress):
        def warn(self, line):
            there.append((line, list(tmp_path.iterdir())))

    models, allowing = {"dense": model, "pruned": pairs}, QuantizeRecipe(allow_fallback=True)
    quantize(models, SEEN, target("gguf", "Q8_0"), allowing, tmp_path, Watching("quiet"))
    assert there
    assert all(files == [] for _, files in there)


def test_llama_cpp_heeds_what_matters(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")
    model = make_model("llama", hidden_size=256, intermediate_size=512)
    wanted = target("gguf", "Q4_0")
    metrics, _, with_importance, changed = run(model, model, wanted, tmp_path)
    assert changed == []
    assert metrics["rules"]["dense"] == [
        "lm_head.weight: Q6_K, not Q4_0, by llama.cpp's own rule for the head, which has rows of 256"
    ]
    entry = read_json(tmp_path / "plan" / "plan.json")["weights"]["dense"]["lm_head.weight"]
    assert (entry["type"], entry["types"]) == ("Q6_K", ["Q6_K"])
    assert with_importance["types"]["dense"] == {"F32": 5, "Q4_0": 15, "Q6_K": 1}
    types = read_json(tmp_path / "export" / "dense" / TYPES)
    assert (types["output.weight"], types["token_embd.weight"], types["output_norm.weight"]) == ("Q6_K", "Q4_0", "F32")
    from safetensors.torch import load_file

    importance = load_file(tmp_path / "plan" / "dense.safetensors")
    origins = gguf_origins(model)
    assert set(origins) >= {"blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"}
    assert importance[origins["blk.0.attn_q.weight"]].shape == (256,)
    (tmp_path / "plan" / "dense.safetensors").unlink()
    (tmp_path / "export").rename(tmp_path / "other")
    models = dict.fromkeys(TOKENIZERS, model)
    without, _ = export(
        models, TOKENIZERS, TEXTS[:2], "toy", tmp_path / "plan", wanted, tmp_path / "export", lambda _: None
    )
    assert with_importance["quantized"]["dense"] != without["quantized"]["dense"]

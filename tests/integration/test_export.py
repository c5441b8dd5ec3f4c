"""Exported graphs compute what the models compute, for every family, dense and factored."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.reference import REFERENCE, drift, write_reference
from sieve_edge.errors import ArtifactError
from sieve_edge.export import export
from sieve_edge.export.check import check_folder
from sieve_edge.export.to_onnx import write_graph
from sieve_edge.export.weights import account, parameters_of
from sieve_edge.model.factored import FactoredLinear, install_
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.matrices import count_params, find_matrices
from sieve_edge.resolve import load_target

VOCABULARY, HIDDEN, RANK, WINDOW = 101, 32, 8, 5
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "phi3": Phi3Config(**SHAPE),
    "gemma3_text": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
}
FORMS = ("dense", "pair", "pivoted_input", "pivoted_output")
# Longer than the sliding window, and of different lengths, so that the batch is padded on the left.
TEXTS = ["w5 w9 w11 w3", "w4 w17 w23"]
PROMPTS = [[5, 9, 11, 3, 8, 60, 41, 7, 2, 90, 12, 33], [4, 17, 23], [70, 71, 72, 73, 74, 75, 76, 77]]


def make_model(family: str, form: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family]), attn_implementation="eager")
    for parameter in model.parameters():
        # Biases and norms that are not 0 and 1, so that a lost or swapped one shows.
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    if form != "dense":
        for spec in find_matrices(model, family):
            biased = any(getattr(model.get_submodule(path), "bias", None) is not None for path in spec.paths)
            leader = FactoredLinear(
                spec.in_features, spec.part_features, RANK, form, 3 if "pivoted" in form else 0, biased
            )
            for parameter in leader.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            install_(model, spec.paths, leader)
    return model.eval().requires_grad_(False)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="w1", eos_token="w2", chat_template="{{ messages }}"
    )


def read_graph(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def weights_in(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", CONFIGS)
def test_same_logits_prefill_padded_and_cached(family, form, tmp_path):
    model = make_model(family, form)
    write_graph(model, tmp_path)
    assert not any(module.training for module in model.modules())
    assert check_folder(model, PROMPTS, tmp_path) < 1e-4
    parameters = parameters_of(model)
    assert len(weights_in(read_graph(tmp_path))) == len(parameters)
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert size == pytest.approx(4 * count_params(model), rel=0.01)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_window_is_narrower_than_the_past(family, tmp_path):
    """A token that has left every sliding window must not matter to a model of sliding layers only."""
    model = make_model(family, "dense")
    write_graph(model, tmp_path)
    exported = OrtTextModel(tmp_path, 1)
    ids = np.asarray([PROMPTS[0], [1, *PROMPTS[0][1:]]], dtype=np.int64)
    logits, _ = exported.forward(ids, np.ones_like(ids), np.arange(12)[None].repeat(2, 0), [], 0)
    # Two layers of a window see twice its width back, less one for each.
    reach = 2 * (WINDOW - 1)
    assert not np.array_equal(logits[0, reach], logits[1, reach])
    if family == "mistral":
        np.testing.assert_array_equal(logits[0, reach + 1 :], logits[1, reach + 1 :])
    else:
        assert not np.array_equal(logits[0, reach + 1 :], logits[1, reach + 1 :])


@pytest.mark.parametrize("form", FORMS[1:])
def test_shared_projection_is_stored_and_multiplied_once(form, tmp_path):
    write_graph(make_model("llama", form), tmp_path)
    graph = read_graph(tmp_path)
    names = {tensor.name.removesuffix(".transposed") for tensor in weights_in(graph)}
    for layer in ("0", "1"):
        stack = {name for name in names if f"layers.{layer}.self_attn" in name and "o_proj" not in name}
        kinds = {"pair": ("down", "up"), "pivoted_input": ("coef", "up"), "pivoted_output": ("down", "coef")}[form]
        assert stack == {f"model.layers.{layer}.self_attn.q_proj.{kind}.weight" for kind in kinds}
    readers = Counter(name.removesuffix(".transposed") for node in graph.node for name in node.input)
    assert all(readers[name] == 1 for name in names if "layers." in name)
    # Per layer: two for each of the four stacks, and two of attention itself; rotary angles are one for all layers.
    in_layers = [node for node in graph.node if node.op_type == "MatMul" and "layers." in node.name]
    assert len(in_layers) == 2 * (4 * 2 + 2)


def test_factors_are_cut_and_joined_at_constant_places(tmp_path):
    write_graph(make_model("llama", "pivoted_output"), tmp_path)
    graph = read_graph(tmp_path)
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        # The exporter writes a slice's bounds as the unsqueezed constants that they were in Python.
        if node.op_type == "Constant" or (node.op_type == "Unsqueeze" and constants.issuperset(node.input)):
            constants.add(node.output[0])
    cuts = [node for node in graph.node if node.op_type in ("Slice", "Split") and "_proj" in node.name]
    assert cuts
    assert all(name in constants for node in cuts for name in node.input[1:])


@pytest.mark.parametrize("form", ["dense", "pivoted_output"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text"])
def test_layers_do_not_compute_shapes_again(family, form, tmp_path):
    """Only the attention's output still asks: the mask's shape, from Range, is not known to shape inference."""
    write_graph(make_model(family, form), tmp_path)
    asked = Counter(
        node.name.split("layers.")[1].split("/")[0]
        for node in read_graph(tmp_path).node
        if node.op_type == "Shape" and "layers." in node.name
    )
    assert max(asked.values(), default=0) <= 2


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_to_keep_is_optional(family, tmp_path):
    write_graph(make_model(family, "dense"), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert "logits_to_keep" not in {item.name for item in session.get_inputs()}
    assert [item.name for item in session.get_overridable_initializers()] == ["logits_to_keep"]
    model = OrtTextModel(tmp_path, 1)
    ids = np.asarray([PROMPTS[0]], dtype=np.int64)
    arguments = (ids, np.ones_like(ids), np.arange(ids.shape[1])[None], [])
    every, _ = model.forward(*arguments, 0)
    last, _ = model.forward(*arguments, 1)
    three, _ = model.forward(*arguments, 3)
    assert every.shape == (1, 12, VOCABULARY)
    assert last.shape == (1, 1, VOCABULARY)
    np.testing.assert_allclose(every[:, -1:], last, atol=1e-5)
    np.testing.assert_allclose(every[:, -3:], three, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_tied_head_is_stored_once_and_as_it_is(family, tmp_path):
    model = make_model(family, "dense")
    write_graph(model, tmp_path)
    tables = [tensor for tensor in weights_in(read_graph(tmp_path)) if VOCABULARY in tensor.dims]
    assert [list(tensor.dims) for tensor in tables] == [[VOCABULARY, HIDDEN]]


def test_missing_and_left_over_tensors_are_errors(tmp_path):
    model = make_model("llama", "dense")
    write_graph(model, tmp_path)
    parameters = parameters_of(model)
    account(tmp_path, parameters)
    with pytest.raises(ArtifactError, match=r"extra\.weight is missing"):
        account(tmp_path, {**parameters, "extra.weight": torch.zeros(2, 2)})
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ArtifactError, match=rf"{name} is left over"):
        account(tmp_path, {key: value for key, value in parameters.items() if key != name})
    with pytest.raises(ArtifactError, match="instead of"):
        account(tmp_path, {**parameters, "model.norm.weight": torch.zeros(3)})
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="outside"):
        account(tmp_path, parameters)


def test_unused_parameter_is_an_error(tmp_path):
    model = make_model("llama", "dense")
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(4), requires_grad=False))
    with pytest.raises(ArtifactError, match="unused is missing"):
        write_graph(model, tmp_path)


def test_changed_weight_is_found_by_the_check(tmp_path):
    model = make_model("llama", "dense")
    write_graph(model, tmp_path)
    model.model.norm.weight.data[0] += 10.0
    with pytest.raises(ArtifactError, match="differ"):
        check_folder(model, PROMPTS, tmp_path)


def test_reference_is_replayed_without_torch(tmp_path):
    model = make_model("llama", "dense")
    write_graph(model, tmp_path)
    write_reference(TorchTextModel(model, "cpu"), PROMPTS, tmp_path / REFERENCE)
    assert 0.0 < drift(OrtTextModel(tmp_path, 1), tmp_path / REFERENCE).max_difference < 1e-4
    with np.load(tmp_path / REFERENCE, allow_pickle=False) as stored:
        assert stored["tokens"].shape == (3, 16)
        assert stored["logits"].shape == (3, 17, VOCABULARY)
    (tmp_path / REFERENCE).write_bytes(b"PK")
    with pytest.raises(ArtifactError, match="not a reference"):
        drift(OrtTextModel(tmp_path, 1), tmp_path / REFERENCE)


@pytest.mark.parametrize("family", CONFIGS)
def test_folder_has_what_others_load(family, tmp_path):
    steps: list[int] = []
    models = {"dense": make_model(family, "dense"), "pruned": make_model(family, "pair")}
    tokenizers, dense = dict.fromkeys(models, make_tokenizer()), models["dense"]
    target = load_target("x86-cpu")
    metrics, fallbacks = export(models, tokenizers, TEXTS, "tiny", tmp_path, target, tmp_path, steps.append)
    assert fallbacks == []
    assert steps == [1] * 6
    assert metrics["size_mib"]["pruned"] < metrics["size_mib"]["dense"]
    for name in ("dense", "pruned"):
        folder = tmp_path / name
        assert metrics["max_logit_difference"][name] < 1e-4
        assert (folder / "model.onnx.data").stat().st_nlink == 1
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == family
        assert config["architectures"] == [type(dense).__name__]
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert settings["model_input_names"] == ["input_ids", "attention_mask"]
        assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
        assert (folder / "tokenizer.json").is_file()
        assert (folder / "generation_config.json").is_file()
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        assert decoder["num_hidden_layers"] == 2
        assert decoder["head_size"] == 8
        inputs = {value.name for value in read_graph(folder).input}
        assert {"input_ids", "attention_mask", "position_ids", "past_key_values.1.value"} <= inputs

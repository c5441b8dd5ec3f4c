"""GGUF export: names, ranks and tokens are accounted for, and llama.cpp computes what PyTorch does."""

import copy
import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sieve_edge.device.inspect import inspect_path
from sieve_edge.device.llama import GGUF, LlamaTextModel, runtime
from sieve_edge.device.llama_refusals import refuse
from sieve_edge.device.reference import DRIFT, REFERENCE, drift
from sieve_edge.errors import ArtifactError, EnvironmentMissing, ModelError
from sieve_edge.export import to_gguf
from sieve_edge.export.gguf_folder import TYPES, GgufWeights, write_gguf_folder
from sieve_edge.export.gguf_metadata import check_config, gguf_description, metadata
from sieve_edge.export.gguf_tokenizer import add_tokenizer
from sieve_edge.export.merged import merge_
from sieve_edge.export.quantize_gguf import tensor_types
from sieve_edge.export.to_gguf import account, gguf_tensors, write_gguf
from sieve_edge.files import read_json
from sieve_edge.model.factored import FactoredLinear, StackPart
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.gguf_header import FORMAT_KEY
from sieve_edge.model.matrices import known_architectures
from sieve_edge.task.likelihood import label_log_likelihoods
from tests.pico import PROMPT
from tests.tiny_gguf import TEXTS, TOKENIZER, factor, make_model, narrow, types_of

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

FAMILIES = [family for family, entry in known_architectures().items() if "gguf" in entry]


def logits(model, ids):
    rows = np.asarray([ids], dtype=np.int64)
    return model.forward(rows, np.ones_like(rows), np.arange(len(ids))[None], [], 0)[0]


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    pairs, merged = factor(make_model(family), family)
    counts = {}
    for name, model in (("pairs", pairs), ("merged", merged)):
        counts[name] = write_gguf(model, TOKENIZER, name, folder / f"{name}.gguf")
    return family, folder, pairs, counts


def test_factored_and_merged_files_compute_the_same_in_llama_cpp(written):
    _, folder, pairs, _ = written
    ids = TOKENIZER.encode(TEXTS[0])
    found = {name: logits(LlamaTextModel(folder / f"{name}.gguf", 1, 256, "f32"), ids) for name in ("pairs", "merged")}
    # llama.cpp takes GELU from a table of 16-bit numbers, which makes steps of any small difference.
    limit = 1e-4 if pairs.config.to_dict().get("hidden_act") == "silu" else 2e-3
    assert np.abs(found["pairs"] - found["merged"]).max() <= limit
    expected = logits(TorchTextModel(pairs, "cpu"), ids)
    assert np.abs(found["pairs"] - expected).max() <= limit
    assert np.ptp(expected) > 0.1, "logits that are all alike would prove nothing"


def test_a_stack_shares_its_projection(written):
    family, folder, _, counts = written
    reader = gguf.GGUFReader(folder / "pairs.gguf")
    assert reader.fields[FORMAT_KEY].contents() == 1
    names = [tensor.name for tensor in reader.tensors]
    firsts = sorted(name.removesuffix(".fac_a.weight") for name in names if ".fac_a." in name and "blk.0" in name)
    assert firsts == ["blk.0.attn_output", "blk.0.attn_qkv", "blk.0.ffn_down", "blk.0.ffn_gate"] or (
        family == "phi3" and firsts == ["blk.0.attn_output", "blk.0.attn_qkv", "blk.0.ffn_down", "blk.0.ffn_up"]
    ), "one first factor for each of the four matrices"
    seconds = sum(".fac_b." in name for name in names)
    assert counts == {"pairs": seconds, "merged": 0}
    assert FORMAT_KEY not in gguf.GGUFReader(folder / "merged.gguf").fields


def test_layers_on_the_gpu_are_those_that_the_model_has(written, monkeypatch):
    _, folder, pairs, _ = written
    monkeypatch.setattr(runtime(), "llama_supports_gpu_offload", lambda: True)
    layers = pairs.config.num_hidden_layers
    for asked, placed in (
        (0, ["CPU"]),
        (1, ["1 layers asked for on the GPU", "CPU"]),
        (999, [f"{layers + 1} layers asked for on the GPU", "CPU"]),
    ):
        assert LlamaTextModel(folder / "pairs.gguf", 1, 256, gpu_layers=asked).providers == placed


def multiplications(file, monkeypatch):
    """Count the matrix multiplications that llama.cpp does for one token."""
    api = runtime()
    describe = ctypes.CDLL(str(Path(api.__file__).parent / "lib" / "libggml-base.so")).ggml_op_desc
    describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    seen = []

    def see(tensor, ask, _):
        seen.extend([describe(tensor)] if ask else [])
        return False

    watch, defaults = api.ggml_backend_sched_eval_callback(see), api.llama_context_default_params

    def watched():
        params = defaults()
        params.cb_eval = watch
        return params

    with monkeypatch.context() as patch:
        patch.setattr(api, "llama_context_default_params", watched)
        model = LlamaTextModel(file, 1, 256, "f32")
        seen.clear()
        logits(model, [5])
    return seen.count(b"MUL_MAT")


def test_a_shared_projection_is_multiplied_once(written, tmp_path, monkeypatch):
    family, folder, pairs, _ = written
    if family == "phi3":
        pytest.skip("its gate and up are one matrix in llama.cpp, so nothing is shared")

    def unshared(model, description):
        for name, tensor in gguf_tensors(model, description):
            yield name, tensor
            if name.endswith("ffn_gate.fac_a.weight"):
                yield name.replace("gate", "up"), tensor

    monkeypatch.setattr(to_gguf, "gguf_tensors", unshared)
    write_gguf(pairs, TOKENIZER, "each its own", tmp_path / "own.gguf")
    layers = pairs.config.num_hidden_layers
    own, shared = (multiplications(file, monkeypatch) for file in (tmp_path / "own.gguf", folder / "pairs.gguf"))
    assert own == shared + layers
    ids = TOKENIZER.encode(TEXTS[0])
    both = [logits(LlamaTextModel(file, 1, 256, "f32"), ids) for file in (tmp_path / "own.gguf", folder / "pairs.gguf")]
    assert np.array_equal(*both)


def test_scores_and_continuations_are_those_of_pytorch(written):
    _, folder, pairs, _ = written
    expected, model = TorchTextModel(pairs, "cpu"), LlamaTextModel(folder / "pairs.gguf", 1, 4096, "f32")
    prompts = [TOKENIZER.encode(PROMPT + text) for text in TEXTS]
    answers = [TOKENIZER.encode(answer) for answer in (" good", " very bad indeed")]
    assert len(answers[1]) > 1
    each = [label_log_likelihoods(one, prompts, answers, 256) for one in (expected, model)]
    assert np.abs(each[0] - each[1]).max() < 5e-3


def test_a_past_may_be_continued_twice(written):
    _, folder, _, _ = written
    model = LlamaTextModel(folder / "pairs.gguf", 1, 256, "f32")
    ids = np.asarray([TOKENIZER.encode(TEXTS[0])[:8]], dtype=np.int64)
    positions = np.arange(8)[None]
    _, past = model.forward(ids, np.ones_like(ids), positions, [], 1)
    more = np.asarray([[5, 6]], dtype=np.int64)
    mask = np.ones((1, 10), dtype=np.int64)
    first, _ = model.forward(more, mask, np.asarray([[8, 9]]), past, 0)
    again, _ = model.forward(more, mask, np.asarray([[8, 9]]), past, 0)
    assert np.array_equal(first, again)


def test_sequences_are_given_back(written):
    _, folder, _, _ = written
    model = LlamaTextModel(folder / "pairs.gguf", 1, 2048)
    ids = np.full((100, 2), 7, dtype=np.int64)
    for _ in range(4):
        model.forward(ids, np.ones_like(ids), np.tile(np.arange(2), (100, 1)), [], 1)
    with pytest.raises(ArtifactError, match="a batch of 300 rows, only 256 sequences are free"):
        model.forward(np.full((300, 1), 7), np.ones((300, 1)), np.zeros((300, 1)), [], 1)


def test_a_folder_is_checked_and_quantized(tmp_path):
    pairs, _ = factor(make_model("llama"), "llama")
    steps = []
    weights = GgufWeights("Q8_0", types_of(pairs, "Q8_0"))
    metrics, fallbacks = write_gguf_folder(pairs, TOKENIZER, TEXTS[:2], "toy", weights, tmp_path, steps.append)
    assert (steps, fallbacks) == ([1, 1, 1], [])
    assert metrics["max_logit_difference"] < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == [DRIFT, GGUF, REFERENCE, "tokenizer.json", TYPES]
    assert {kind for shape, kind in tensor_types(tmp_path / GGUF).values() if len(shape) > 1} == {"Q8_0"}
    assert 0.0 < metrics["quantized"]["kl"] < 0.01
    assert read_json(tmp_path / DRIFT) == metrics["quantized"]
    again = drift(LlamaTextModel(tmp_path / GGUF, 1, 256), tmp_path / REFERENCE)
    assert again.kl == pytest.approx(metrics["quantized"]["kl"], rel=0.2)


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"hidden_act is gelu, must be silu"):
        write_gguf(make_model("llama", hidden_act="gelu"), TOKENIZER, "x", tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"gpt2\.json has no part 'gguf'"):
        gguf_description("gpt2")
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ModelError, match="its model is WordLevel"):
        add_tokenizer(None, PreTrainedTokenizerFast(tokenizer_object=words), 1)
    strange = copy.deepcopy(TOKENIZER.backend_tokenizer)
    strange.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel()])
    with pytest.raises(ModelError, match=r"pre-tokenizer is not known.*Punctuation"):
        add_tokenizer(gguf.GGUFWriter(None, "llama"), PreTrainedTokenizerFast(tokenizer_object=strange), 400)


def test_a_window_that_the_graph_lacks_bounds_the_context():
    config = make_model("mistral", sliding_window=16).config
    assert metadata(config, gguf_description("mistral"))["context_length"] == 16
    check_config(config, gguf_description("mistral"))


def test_frequencies_that_the_model_changes_are_written(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = make_model("llama", rope_parameters=rope)
    write_gguf(model, TOKENIZER, "rope", tmp_path / "rope.gguf")
    ids = TOKENIZER.encode(" ".join(TEXTS))[:100]
    found, expected = (
        logits(LlamaTextModel(tmp_path / "rope.gguf", 1, 128, "f32"), ids),
        logits(TorchTextModel(model, "cpu"), ids),
    )
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("family", [family for family in FAMILIES if "width" in gguf_description(family)])
def test_layers_of_different_widths_compute_what_pytorch_does(family, tmp_path):
    model = narrow(family)
    assert write_gguf(model, TOKENIZER, "narrow", tmp_path / "narrow.gguf") == 0
    reader = gguf.GGUFReader(tmp_path / "narrow.gguf")
    read = {name: field.contents() for name, field in reader.fields.items()}
    assert read["general.architecture"] == "deci"
    assert read["deci.feed_forward_length"] == [96, 32]
    assert read["deci.attention.head_count"] == [2, 4]
    assert read["deci.attention.head_count_kv"] == [1, 2]
    assert not any("fac_" in tensor.name for tensor in reader.tensors)
    assert FORMAT_KEY not in read
    ids = TOKENIZER.encode(TEXTS[0])
    found, expected = (
        logits(LlamaTextModel(tmp_path / "narrow.gguf", 1, 256, "f32"), ids),
        logits(TorchTextModel(model, "cpu"), ids),
    )
    assert np.abs(found - expected).max() <= 1e-4
    assert np.ptp(expected) > 0.1


def test_merged_factors_compute_what_the_pairs_do(written):
    family, _, pairs, _ = written
    merged = copy.deepcopy(pairs)
    parts = sum(len(entry["parts"]) for entry in known_architectures()[family]["matrices"].values())
    assert len(merge_(merged)) == parts * pairs.config.num_hidden_layers
    assert not any(isinstance(module, FactoredLinear | StackPart) for module in merged.modules())
    ids = TOKENIZER.encode(TEXTS[0])
    both = [logits(TorchTextModel(model, "cpu"), ids) for model in (pairs, merged)]
    assert np.abs(both[0] - both[1]).max() < 1e-4
    assert set(merged.state_dict()) == set(make_model(family).state_dict())


def test_a_lost_tensor_is_named(written):
    _, folder, pairs, _ = written
    tensors = dict(gguf_tensors(pairs, gguf_description(pairs.config.model_type)))
    tensors["extra"] = tensors.pop("output_norm.weight")
    with pytest.raises(ArtifactError, match=r"2 weights are not accounted for: extra is missing; output_norm"):
        account(folder / "pairs.gguf", tensors)


def test_a_runtime_without_the_patch_is_named(written, tmp_path):
    _, folder, _, _ = written
    with pytest.raises(EnvironmentMissing, match=r"llama-cpp-python 0\.3\.36 does not know.*make runtime"):
        refuse(folder / "pairs.gguf", "missing tensor", "0.3.36")
    with pytest.raises(ArtifactError, match="cannot load it"):
        refuse(folder / "merged.gguf", "truncated", "0.3.36")
    (tmp_path / GGUF).write_bytes((folder / "pairs.gguf").read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"llama\.cpp cannot load it"):
        LlamaTextModel(tmp_path / GGUF, 1, 64)
    with pytest.raises(ArtifactError, match="missing; run the export again"):
        LlamaTextModel(tmp_path / "none.gguf", 1, 64)


def test_factored_weights_of_a_newer_format_are_refused(written, tmp_path, monkeypatch):
    _, folder, pairs, _ = written
    assert inspect_path(folder / "pairs.gguf")["factored_version"] == 1
    monkeypatch.setattr(to_gguf, "FORMAT_VERSION", 2)
    newer = tmp_path / "newer.gguf"
    write_gguf(pairs, TOKENIZER, "newer", newer)
    told = r"newer\.gguf: sieve_edge\.factored\.version is 2, known is 1; install a newer sieve-edge"
    with pytest.raises(ArtifactError, match=told):
        LlamaTextModel(newer, 1, 64)
    facts = inspect_path(newer)
    assert (facts["version"], facts["factored_version"]) == (3, 2)
    assert facts["loads_in"] == ["llama.cpp of a newer sieve-edge (this one knows sieve_edge.factored.version 1)"]
    # The format may be why a file cannot be loaded at all.
    newer.write_bytes(newer.read_bytes()[:50000])
    with pytest.raises(ArtifactError, match=told):
        LlamaTextModel(newer, 1, 64)

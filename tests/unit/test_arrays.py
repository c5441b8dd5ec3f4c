"""A model taken apart into arrays and put together again computes the same bits."""

import pickle

import pytest
import torch

from sieve_edge.errors import ArtifactError, ModelError
from sieve_edge.model.arrays import ModelArrays, bank_arrays, model_arrays, rebuild_model
from sieve_edge.model.bank import ProjectionBank, write_fitted, write_nested
from tests.pico import FAMILIES, make_model


def elsewhere(parts):
    """What another process gets: the arrays lie in memory that it may only read."""
    buffers = []
    frame = pickle.dumps(parts, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(frame, buffers=[bytes(buffer) for buffer in buffers])  # noqa: S301 (our own)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rebuilt_model_gives_the_same_logits_bit_for_bit(family):
    model = make_model(family).eval()
    parts = elsewhere(model_arrays(model))
    assert not parts.arrays[0].flags.writeable
    rebuilt = rebuild_model(parts, "cpu")
    ids = torch.randint(4, 40, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(rebuilt(ids).logits, model(ids).logits)
    head, embeddings = rebuilt.get_output_embeddings().weight, rebuilt.get_input_embeddings().weight
    assert (head is embeddings) == model.config.tie_word_embeddings
    assert not rebuilt.training
    assert not any(parameter.requires_grad for parameter in rebuilt.parameters())


def test_the_rebuilt_model_copies_nothing():
    parts = model_arrays(make_model("llama"))
    rebuilt = rebuild_model(parts, "cpu")
    assert rebuilt.model.norm.weight.data_ptr() == parts.arrays[parts.places["model.norm.weight"]].ctypes.data


def test_a_model_of_another_shape_is_refused():
    parts = model_arrays(make_model("llama"))
    fewer = {name: index for name, index in parts.places.items() if name != "model.norm.weight"}
    with pytest.raises(ModelError, match=r"differs in model\.norm\.weight"):
        rebuild_model(ModelArrays(parts.config, parts.arrays, fewer), "cpu")


def test_a_bank_in_memory_is_the_bank_on_disk(tmp_path):
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(6, 8, generator=generator), torch.randn(6, 10, generator=generator)
    write_nested(tmp_path, "nested", down, up, torch.zeros(7), 1.0, 6)
    write_fitted(tmp_path, "fitted", {rank: (down[:rank].clone(), up[:rank].T.clone(), 0.1) for rank in (2, 4)}, 1.0)
    disk = ProjectionBank(tmp_path)
    memory = elsewhere(bank_arrays(disk, ["nested", "fitted"]))
    assert memory.nested("fitted") is None
    for found, expected in (
        (memory.nested("nested"), disk.nested("nested")),
        (memory.at("nested", 3), disk.at("nested", 3)),
        (memory.at("fitted", 4), disk.at("fitted", 4)),
    ):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for matrix, rank in (("nested", 7), ("fitted", 3)):
        with pytest.raises(ArtifactError, match=f"no rank {rank} for {matrix}"):
            memory.at(matrix, rank)

"""GGUF headers are read as the library reads them, and broken files are named."""

import gguf
import numpy as np
import pytest

from sieve_edge.errors import ArtifactError, ModelError
from sieve_edge.model.gguf_header import read_gguf_header
from sieve_edge.model.source import ModelSource, read_card_header


def write_gguf(path, strings=()):
    writer = gguf.GGUFWriter(path, "llama")
    for name, text in dict(strings).items():
        writer.add_string(name, text)
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.epsilon", 0.5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "ü"])
    writer.add_array("tokenizer.ggml.scores", [1.0, 2.0, 3.0])
    writer.add_tensor("token_embd.weight", np.zeros((6, 32), np.float32))
    writer.add_tensor(
        "blk.0.ffn_up.weight",
        gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_is_what_the_library_reads(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", {"general.license": "mit"})
    header, reader = read_gguf_header(path), gguf.GGUFReader(path)
    assert header.fields["general.license"] == "mit"
    assert header.fields["llama.block_count"] == 2
    assert header.fields["llama.epsilon"] == 0.5
    assert header.fields["tokenizer.ggml.add_bos_token"] is True
    assert "tokenizer.ggml.tokens" not in header.fields
    theirs = [
        (item.name, tuple(map(int, item.shape))[::-1], item.tensor_type.name, int(item.n_bytes))
        for item in reader.tensors
    ]
    assert [(item.name, item.shape, item.kind, item.size) for item in header.tensors] == theirs


def test_broken_files_are_named(tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    whole = path.read_bytes()
    for content in (b"", b"zip!" + whole[4:], whole[:100], whole[:4] + b"\x09" + whole[5:]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=str(path)):
            read_gguf_header(path)


def test_licence_and_name_come_from_the_gguf(tmp_path):
    told = {
        "general.license": "llama3.2",
        "general.license.link": "https://l",
        "general.source.repo_url": "https://huggingface.co/some/model",
    }
    write_gguf(tmp_path / "m.gguf", told)
    assert ModelSource("m.gguf", "m", str(tmp_path), "m.gguf").facts() == {
        "reference": "m.gguf",
        "name": "m",
        "hub_id": "some/model",
        "license": "llama3.2",
        "license_name": None,
        "license_link": "https://l",
    }


def test_licence_comes_from_the_directory_s_card(tmp_path):
    source = ModelSource("there", "there", str(tmp_path), None)
    assert source.facts()["license"] is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n")
    assert source.facts()["license"] == "apache-2.0"
    (tmp_path / "README.md").write_text("# A card without a header\n")
    assert source.facts()["license"] is None


def test_a_hub_model_is_its_own_name():
    facts = ModelSource("hf:some/model", "model", "some/model", None).facts()
    assert (facts["hub_id"], facts["license"]) == ("some/model", None)


def test_a_broken_header_is_named(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\na: [\n---\n")
    with pytest.raises(ModelError, match=r"README\.md: its header is not YAML"):
        read_card_header(card)

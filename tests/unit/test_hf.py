"""Sieved checkpoints: saved and loaded bit for bit by transformers, with sieve_edge and without it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from sieve_edge.model.factored import install_layout_
from sieve_edge.model.hf import write_sieve_config
from sieve_edge.model.matrices import find_matrices, stacked_bias
from tests.pico import FAMILIES, make_model, make_tokenizer

STORAGES = ("pair", "pivoted_input", "pivoted_output")
IDS = torch.tensor([[4, 60, 63, 83, 11, 9, 6]])

WITHOUT_SIEVE_EDGE = """
import sys
import torch
from safetensors.torch import save_file

class Hide:  # an editable install is found by a hook of site-packages, which this stands in front of
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sieve_edge":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hide())
try:
    import sieve_edge
except ModuleNotFoundError:
    from transformers import AutoModelForCausalLM
else:
    sys.exit("sieve_edge is importable")
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, attn_implementation="eager").eval()
ids = torch.tensor([[4, 60, 63, 83, 11, 9, 6]])
with torch.inference_mode():
    logits = model(ids).logits.contiguous()
save_file({"logits": logits, "generated": model.generate(ids, max_new_tokens=4, do_sample=False)}, sys.argv[2])
"""


def _checkpoint(family: str, folder: Path) -> tuple[Any, torch.Tensor]:
    """Save a pico model whose matrices but the last are factored, in each storage in turn; return it and its logits."""
    model = make_model(family).eval()
    layout = {}
    for index, spec in enumerate(find_matrices(model, family)[:-1]):
        layout[spec.name] = {
            "paths": list(spec.paths),
            "in_features": spec.in_features,
            "part_features": list(spec.part_features),
            "rank": 6,
            "storage": STORAGES[index % 3],
            "pivot_start": 2 if index % 3 else 0,
            "bias": stacked_bias(model, spec) is not None,
        }
    torch.manual_seed(1)
    install_layout_(model, layout)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    write_sieve_config(model, layout, folder)
    with torch.inference_mode():
        return model, model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_reloaded_logits_are_equal_bit_for_bit(family: str, tmp_path: Path) -> None:
    model, logits = _checkpoint(family, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.inference_mode():
        assert torch.equal(loaded(IDS).logits, logits)
    assert isinstance(loaded, type(make_model(family)))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    prompt = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    generated = loaded.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert generated.shape == (1, IDS.shape[1] + 4)
    assert generated[0, IDS.shape[1]] == logits[0, -1].argmax()
    assert AutoTokenizer.from_pretrained(tmp_path).encode(" good") == make_tokenizer().encode(" good")


def test_a_loaded_checkpoint_can_be_saved_again(tmp_path: Path) -> None:
    _, logits = _checkpoint("llama", tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first", attn_implementation="eager").eval()
    loaded.save_pretrained(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second", attn_implementation="eager").eval()
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, logits)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")]
    assert configs[0]["layout"] == configs[1]["layout"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_loads_without_sieve_edge(family: str, tmp_path: Path) -> None:
    _, logits = _checkpoint(family, tmp_path / "checkpoint")
    result = tmp_path / "result.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SIEVE_EDGE, str(tmp_path / "checkpoint"), str(result)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tensors = load_file(result)
    assert torch.equal(tensors["logits"], logits)
    assert tensors["generated"].shape[1] > IDS.shape[1]


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    _checkpoint("llama", tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_without_its_head_is_there_for_those_who_bring_one(family: str, tmp_path: Path) -> None:
    model, logits = _checkpoint(family, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.num_hidden_layers == 2
    assert not hasattr(config, "no_such_field")
    bare = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    prefix = f"{bare.base_model_prefix}."
    inside = {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}
    bare.load_state_dict(inside)
    with torch.inference_mode():
        hidden = bare(IDS).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(hidden), logits)

"""Checkpoints of sieved models on disk: saved, reloaded, and compared bit for bit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sieve_edge.errors import ArtifactError
from sieve_edge.files import read_json
from sieve_edge.model.flat import flat_forward
from sieve_edge.model.hf import write_sieve_config
from sieve_edge.model.load import quiet
from sieve_edge.model.tensors import tensor_disk_errors


def save_checkpoint(model: Any, tokenizer: Any, layout: Mapping[str, Any], prompt: Sequence[int], out: Path) -> None:
    """Write a Hugging Face checkpoint, and prove that what is loaded from it computes the same.

    Args:
        model: transformers model with factored or narrow linears.
        tokenizer: Its tokenizer.
        layout: Matrix name -> how it is stored, for the checkpoint's configuration.
        prompt: Token ids that both run.
        out: Existing folder; the reloaded model must be equal bit for bit, else it is an ``ArtifactError``.
    """
    with tensor_disk_errors(out):
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        model.save_pretrained(out, state_dict=state, safe_serialization=True)
        write_sieve_config(model, dict(layout), out)
        tokenizer.save_pretrained(out)
    _compare_reloaded(model, prompt, out)


def load_checkpoint(folder: Path, device: str) -> Any:
    """Load a checkpoint.

    Args:
        folder: Checkpoint folder.
        device: Torch device.

    Returns:
        transformers model of the base family, float32, in evaluation mode.
    """
    quiet()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.to(device).eval().requires_grad_(False)


def read_layout(folder: Path) -> dict[str, Any]:
    """Read where a checkpoint has other linears than its base family.

    Args:
        folder: Checkpoint folder.

    Returns:
        Matrix name -> how it is stored.
    """
    layout: dict[str, Any] = read_json(folder / "config.json")["layout"]
    return layout


@torch.inference_mode()
def _compare_reloaded(model: Any, prompt: Sequence[int], out: Path) -> None:
    reloaded = load_checkpoint(out, str(model.device))
    ids_1T = torch.tensor([list(prompt)], device=model.device)
    mask_1T, positions_1T = torch.ones_like(ids_1T), torch.arange(ids_1T.shape[1], device=model.device)[None]
    ours, _ = flat_forward(model, ids_1T, mask_1T, positions_1T, [])
    theirs, _ = flat_forward(reloaded, ids_1T, mask_1T, positions_1T, [])
    if not torch.equal(ours, theirs):
        difference = float((ours - theirs).abs().max())
        raise ArtifactError(f"{out}: the reloaded checkpoint differs from the fused model by {difference:g}, must be 0")

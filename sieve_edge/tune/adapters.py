"""What is trained: LoRA adapters by peft, or the weights themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sieve_edge.errors import EnvironmentMissing
from sieve_edge.recipe import TuneRecipe


@contextmanager
def trainable(
    model: Any, recipe: TuneRecipe, seed: int
) -> Iterator[tuple[dict[str, nn.Parameter], Callable[[], None]]]:
    """Choose what is trained.

    Args:
        model: transformers model; changed in place.
        recipe: ``lora``: adapters on every linear but the head; ``full_factors``: the linears' weights themselves.
        seed: Seed of the adapters.

    Yields:
        ``(name -> parameter, function that merges adapters into the weights)``.
    """
    model.requires_grad_(False)
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embeddings
    }
    if recipe.method == "full_factors":
        for module in linears.values():
            module.weight.requires_grad_(True)
        yield _required(model), lambda: None
        return
    peft = import_peft()
    config = peft.LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(linears))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, config)
    yield _required(model), adapted.merge_and_unload


def _required(model: Any) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def import_peft() -> Any:
    """Import peft, which only LoRA needs.

    Returns:
        The module.

    Raises:
        EnvironmentMissing: If it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise EnvironmentMissing(f"peft cannot be imported ({error}); run: pip install 'sieve-edge[tune]'") from error
    return peft

"""Teaches transformers to load a sieved checkpoint, as a model of its own base family.

Import this module, then ``AutoModelForCausalLM.from_pretrained(path)`` works. A copy of this file and of
``factored.py`` travels inside every checkpoint, so ``trust_remote_code=True`` works without sieve_edge; that is
why they import nothing but torch and transformers.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .factored import install_layout_

AUTO_MAP = {
    "AutoConfig": "modeling_sieve_edge.SieveConfig",
    "AutoModel": "modeling_sieve_edge.SieveModel",
    "AutoModelForCausalLM": "modeling_sieve_edge.SieveForCausalLM",
}


class SieveConfig(PretrainedConfig):
    """Configuration of a sieved checkpoint: its base family's, and where the factors are."""

    model_type = "sieve_edge"

    def __init__(self, base: dict[str, Any] | None = None, layout: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep both parts.

        Args:
            base: Configuration of the base family, with its ``model_type``.
            layout: Matrix name -> ``paths`` and the arguments of ``FactoredLinear``.
            **kwargs: Fields of every transformers configuration.
        """
        self.base = base or {}
        self.layout = layout or {}
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        """Answer with the base family's value what readers of any configuration ask for, its sizes for example."""
        if name.startswith("_") or not self.__dict__.get("base"):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return getattr(self.base_config(), name)

    def base_config(self) -> Any:
        """Build the base family's configuration.

        Returns:
            A transformers configuration, for example a ``LlamaConfig``.
        """
        return AutoConfig.for_model(**self.base)


def sieved_class(config: SieveConfig, auto: Any = AutoModelForCausalLM) -> type[PreTrainedModel]:
    """Make the class of a sieved model: its base family's, with factored linears.

    Args:
        config: Configuration of the checkpoint.
        auto: ``AutoModelForCausalLM``, or ``AutoModel`` for the model without its head.

    Returns:
        A subclass of, for example, ``LlamaForCausalLM``.
    """
    base_class: Any = auto._model_mapping[type(config.base_config())]
    # Paths are those of the model with its head, which holds the other one under this name.
    inside = "" if auto is AutoModelForCausalLM else f"{base_class.base_model_prefix}."

    def initialise(self: Any, base_config: Any, *args: Any, **kwargs: Any) -> None:
        base_class.__init__(self, base_config, *args, **kwargs)
        layout = {
            name: {**entry, "paths": [path.removeprefix(inside) for path in entry["paths"]]}
            for name, entry in config.layout.items()
        }
        install_layout_(self, layout)

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        base_class.save_pretrained(self, save_directory, *args, **kwargs)
        write_sieve_config(self, config.layout, Path(save_directory))

    members = {"__init__": initialise, "save_pretrained": save_pretrained, "__module__": __name__}
    return type(f"Sieved{base_class.__name__}", (base_class,), members)


def write_sieve_config(model: PreTrainedModel, layout: dict[str, Any], folder: Path) -> None:
    """Write the checkpoint's ``config.json`` and the code that loads it.

    Args:
        model: Model with factored linears.
        layout: Matrix name -> ``paths`` and the arguments of ``FactoredLinear``.
        folder: Checkpoint folder.
    """
    base = {name: value for name, value in model.config.to_dict().items() if name not in ("architectures", "auto_map")}
    config = SieveConfig(
        base=base, layout=layout, auto_map=AUTO_MAP, dtype=model.dtype, architectures=["SieveForCausalLM"]
    )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=str) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    here = Path(__file__)
    (folder / "modeling_sieve_edge.py").write_bytes(here.read_bytes())
    (folder / "factored.py").write_bytes((here.parent / "factored.py").read_bytes())


class SieveForCausalLM(PreTrainedModel):
    """Entry for transformers' Auto classes; hands over to a class of the base family."""

    config_class = SieveConfig

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: SieveConfig | None = None, **kwargs: Any) -> Any:
        """Load a sieved checkpoint.

        Args:
            path: Checkpoint folder or hub id.
            *args: Passed on.
            config: Configuration, read from ``path`` when left out.
            **kwargs: Passed on to the base family's ``from_pretrained``.

        Returns:
            The model, a subclass of its base family's.
        """
        config = config or SieveConfig.from_pretrained(path)
        # The Auto classes move this argument into the configuration that they were asked for.
        kwargs.setdefault("attn_implementation", config._attn_implementation)
        return sieved_class(config).from_pretrained(path, *args, config=config.base_config(), **kwargs)


class SieveModel(PreTrainedModel):
    """Entry for those who bring the head themselves, vLLM for example."""

    config_class = SieveConfig

    @classmethod
    def _from_config(cls, config: SieveConfig, **kwargs: Any) -> Any:
        """Make the model without its head and without weights; what transformers' ``AutoModel.from_config`` calls."""
        base = config.base_config()
        base._attn_implementation = config._attn_implementation
        return sieved_class(config, AutoModel)._from_config(base, **kwargs)


AutoConfig.register(SieveConfig.model_type, SieveConfig, exist_ok=True)
AutoModelForCausalLM.register(SieveConfig, SieveForCausalLM, exist_ok=True)
AutoModel.register(SieveConfig, SieveModel, exist_ok=True)

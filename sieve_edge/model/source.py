"""Finds a dense model on disk, in a package or on the hub, without loading it; imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sieve_edge.errors import EnvironmentMissing, ModelError
from sieve_edge.files import digest, file_sha256
from sieve_edge.model.gguf_header import read_gguf_header
from sieve_edge.resolve import package_file

WEIGHT_SUFFIXES = (".safetensors", ".gguf")
_GGUF_FACTS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "hub_id": "general.source.huggingface.repository",
    "url": "general.source.repo_url",
}
_LICENSE = ("license", "license_name", "license_link")
_HUB_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_HEADER = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


@dataclass(frozen=True)
class ModelSource:
    """A model on disk or on the hub, not loaded yet.

    Attributes:
        reference: What the user wrote.
        name: Short name, for the run's folder.
        folder: Directory, or hub id.
        gguf: File name inside ``folder`` for a GGUF, else None.
    """

    reference: str
    name: str
    folder: str
    gguf: str | None

    def files(self) -> list[Path]:
        """List the files that decide what the model is.

        Returns:
            Configuration, tokenizer and weights; empty for a hub id.
        """
        root = Path(self.folder)
        if self.gguf:
            return [root / self.gguf]
        if not root.is_dir():
            return []
        return sorted(file for file in root.iterdir() if file.suffix in (*WEIGHT_SUFFIXES, ".json", ".model", ".txt"))

    def sha256(self) -> str:
        """Hash the model's files.

        Returns:
            SHA-256 over names and contents; of the id and resolved commit for a hub model.
        """
        files = self.files()
        if files:
            return digest({file.name: file_sha256(file) for file in files})
        return digest({"hub": self.folder, "commit": self._commit()})

    def _commit(self) -> str:
        """Name the commit of a hub model: the newest, or the one that is kept here where the hub is out of reach."""
        hub = _hub(self.reference)
        try:
            file = hub.hf_hub_download(self.folder, "config.json")
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"model '{self.reference}': cannot read its configuration ({said})") from error
        # The hub's client keeps the files of a commit in a folder of its name.
        return Path(file).parent.name

    def weight_bytes(self) -> int:
        """Measure the weights on disk.

        Returns:
            Bytes; 0 for a hub id.
        """
        return sum(file.stat().st_size for file in self.files() if file.suffix in WEIGHT_SUFFIXES)

    def facts(self) -> dict[str, Any]:
        """Say what the model is and under which licence, as far as its files tell.

        Returns:
            ``reference``, ``name``, and ``hub_id``, ``license``, ``license_name`` and ``license_link``, None where
            nothing says so.
        """
        found = dict.fromkeys(("hub_id", *_LICENSE))
        about = self._gguf_facts() if self.gguf else self._card_facts()
        return {"reference": self.reference, "name": self.name, **found, **about}

    def _gguf_facts(self) -> dict[str, Any]:
        fields = read_gguf_header(Path(self.folder) / str(self.gguf)).fields
        kept = {key: fields[name] for key, name in _GGUF_FACTS.items() if name in fields}
        url = kept.pop("url", None)
        hub = _HUB_URL.fullmatch(url) if url else None
        return {**({"hub_id": hub[1]} if hub else {}), **kept}

    def _card_facts(self) -> dict[str, Any]:
        """Read the YAML header of the model's card: in its directory, or where the hub's files are kept."""
        root = Path(self.folder)
        if root.is_dir():
            card, known = root / "README.md", {}
        else:
            cached = _hub(self.reference).try_to_load_from_cache(self.folder, "README.md")
            card, known = Path(cached if isinstance(cached, str) else ""), {"hub_id": self.folder}
        header = read_card_header(card) if card.is_file() else {}
        told = {key: header[key] for key in _LICENSE if isinstance(header.get(key), str)}
        return {**known, **told}


def _hub(reference: str) -> Any:
    """Import the hub's client, which comes with tokenizers but is left out of the device's image."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise EnvironmentMissing(
            f"model '{reference}': huggingface_hub cannot be imported ({error}), which models of the hub need; run: "
            "pip install huggingface_hub"
        ) from error
    return huggingface_hub


def read_card_header(card: Path) -> dict[str, Any]:
    """Read the YAML header of a model card.

    Args:
        card: Markdown file.

    Returns:
        Its fields; empty without a header.

    Raises:
        ModelError: If the header is not YAML.
    """
    header = _HEADER.match(card.read_text(encoding="utf-8"))
    try:
        fields = yaml.safe_load(header[1]) if header else {}
    except yaml.YAMLError as error:
        raise ModelError(f"{card}: its header is not YAML ({error}); correct it") from error
    return fields if isinstance(fields, dict) else {}


def find_model(reference: str) -> ModelSource:
    """Resolve what the user wrote to a model, without loading it.

    Args:
        reference: Directory, GGUF file, ``package:IMPORT_NAME/FILE.gguf`` or ``hf:ORGANISATION/NAME``.

    Returns:
        The source.

    Raises:
        ModelError: If there is no model.
    """
    if reference.startswith("hf:"):
        hub_id = reference.removeprefix("hf:")
        return ModelSource(reference, hub_id.rsplit("/", 1)[-1].lower(), hub_id, None)
    path = package_file(reference) if reference.startswith("package:") else Path(reference).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(
            reference, path.name.split(".Q")[0].removesuffix(".gguf").lower(), str(path.parent), path.name
        )
    if not path.is_dir():
        raise ModelError(
            f"model '{reference}': not a directory, a .gguf file, package:NAME/FILE or hf:ORGANISATION/NAME"
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"model '{reference}': the directory has no config.json; give a Hugging Face model directory")
    return ModelSource(reference, path.resolve().name.lower(), str(path.resolve()), None)

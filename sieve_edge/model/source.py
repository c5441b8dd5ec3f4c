"""Finds a dense model on disk, in a package or on the hub, without loading it; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from sieve_edge.errors import ModelError
from sieve_edge.files import digest, file_sha256
from sieve_edge.resolve import package_file

WEIGHT_SUFFIXES = (".safetensors", ".gguf")


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
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder)
        return digest({"hub": self.folder, "commit": getattr(config, "_commit_hash", None)})

    def weight_bytes(self) -> int:
        """Measure the weights on disk.

        Returns:
            Bytes; 0 for a hub id.
        """
        return sum(file.stat().st_size for file in self.files() if file.suffix in WEIGHT_SUFFIXES)


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

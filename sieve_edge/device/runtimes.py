"""Opens an exported folder in the runtime that a target names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from sieve_edge.device.llama import GGUF, LlamaTextModel
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.errors import ArtifactError

WEIGHTS = "model.*"
"""Pattern of the files of an exported folder that hold graph and weights, whatever the format."""


@dataclass(frozen=True)
class Runtime:
    """How exported folders are run.

    Attributes:
        name: ``"onnxruntime"``, ``"llama.cpp"`` or ``"llama.cpp-stock"``.
        threads: Threads of one operator.
        provider: ONNX Runtime's execution provider.
        gpu_layers: Layers that llama.cpp runs on the GPU.
        half: Whether TensorRT may compute in float16.
    """

    name: str
    threads: int
    provider: str = "CPUExecutionProvider"
    gpu_layers: int = 0
    half: bool = False

    def open(self, folder: Path, context_tokens: int, exact: bool = False) -> OrtTextModel | LlamaTextModel:
        """Load a folder.

        Args:
            folder: Exported folder.
            context_tokens: Tokens that all sequences together will hold; not needed by ONNX Runtime.
            exact: Whether keys and values are kept in float32 where the runtime would round them.

        Returns:
            The model.
        """
        if self.name == "onnxruntime":
            return OrtTextModel(folder, self.threads, self.provider, self.half)
        cache = "f32" if exact else "f16"
        return LlamaTextModel(folder / GGUF, self.threads, context_tokens, cache, self.gpu_layers)


def open_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of an exported folder.

    Args:
        folder: Exported folder.

    Returns:
        Its tokenizer, without padding and truncation.

    Raises:
        ArtifactError: If it is missing or broken.
    """
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ArtifactError(f"{file}: not a tokenizer ({error}); run the export again") from error
    # A tokenizer may carry the padding of its training; a prompt must be whole and alone.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def end_tokens(tokenizer: Tokenizer, ends: Sequence[str]) -> tuple[int, ...]:
    """Find the tokens that end an answer.

    Args:
        tokenizer: A model's tokenizer.
        ends: Their texts.

    Returns:
        Their ids; one that the tokenizer does not have is left out.
    """
    ids = [tokenizer.token_to_id(end) for end in ends]
    return tuple(token for token in ids if token is not None)


def scoring_tokens(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_tokens: int) -> int:
    """Bound the tokens that scoring label likelihoods holds at a time.

    Args:
        prompts: Token ids.
        answers: Token ids of each label.
        batch_tokens: Tokens of one batch.

    Returns:
        Number of tokens.
    """
    longest = max(map(len, prompts))
    # A prefix, a batch, and one more token for each of its rows and each further token of an answer.
    return longest + max(longest, batch_tokens) * max(map(len, answers))

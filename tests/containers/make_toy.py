"""Writes a pico model with its task and target, for docker/prove.sh: ``python -m tests.containers.make_toy FOLDER``."""

import sys
from pathlib import Path

from tests.pico import make_bpe_tokenizer, make_pico, write_target, write_task


def main() -> None:
    """Write them into the folder, which exists; for llama.cpp too, whose files need another tokenizer."""
    folder = Path(sys.argv[1])
    task = write_task(folder)
    write_target(folder, make_pico("llama", folder / "toy-llama"), task)
    model = make_pico("llama", folder / "toy-gguf-llama", seed=3, tokens=make_bpe_tokenizer())
    llama_cpp = {"format": "gguf", "runtime": "llama.cpp", "quantization": "F16", "storage": "pair"}
    write_target(folder, model, task, name="toy-gguf", **llama_cpp)


if __name__ == "__main__":
    main()

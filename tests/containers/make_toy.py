"""Writes a pico model with its task and target, for docker/prove.sh: ``python -m tests.containers.make_toy FOLDER``."""

import sys
from pathlib import Path

from tests.pico import make_pico, write_target, write_task


def main() -> None:
    """Write them into the folder, which exists."""
    folder = Path(sys.argv[1])
    write_target(folder, make_pico("llama", folder / "toy-llama"), write_task(folder))


if __name__ == "__main__":
    main()

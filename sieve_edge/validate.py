"""Stage: what the exported artifact is worth on this device, against the dense model in the same runtime.

Everything is measured in worker processes without torch. Dimension key: N examples, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sieve_edge.config import Target, Task
from sieve_edge.device.checks import kl_limit, make_checks
from sieve_edge.device.process import run_worker
from sieve_edge.device.runtimes import WEIGHTS
from sieve_edge.errors import ArtifactError
from sieve_edge.files import digest, read_json, write_json
from sieve_edge.progress import Progress
from sieve_edge.protocols import Float64, Int64
from sieve_edge.task.evaluate import accuracy_interval, balanced_accuracy, loss_interval, predict, relative_loss
from sieve_edge.task.examples import Example

FACTS = "sieve_edge.json"
REPORT = "report.json"
SPLITS = ("test", "transfer")
BATCH_TOKENS = 1024
"""Tokens scored in one batch; fixed, so that scores do not depend on the machine."""

Tokens = tuple[dict[str, list[list[int]]], list[list[int]]]
"""A model's tokens: the prompts of each split, and the answers."""


@dataclass(frozen=True)
class _Device:
    """Runs jobs for one target, each once: a result that is in ``out`` is not measured again."""

    target: Target
    out: Path
    progress: Progress

    def run(self, name: str, total: int, unit: str, **fields: Any) -> dict[str, Any]:
        """Do a worker job, or read what an interrupted validation left of it."""
        target = self.target
        job = {"runtime": target.runtime, "threads": target.threads, "provider": target.execution_provider, **fields}
        file = self.out / f"{name}.json"
        kept = read_json(file) if file.is_file() else {}
        if kept.get("job") != digest(job):
            with self.progress.task(name, total, unit) as advance:
                kept = {"job": digest(job), "result": run_worker(job, advance)}
            write_json(file, kept)
        result: dict[str, Any] = kept["result"]
        return result


def validate(
    artifact: Path,
    dense: Path,
    examples: Mapping[str, Sequence[Example]],
    task: Task,
    target: Target,
    tolerance: float,
    seed: int,
    source_mib: float,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Score, time and weigh the artifact and the dense model, and check the target's limits.

    Reads both exported folders; writes one JSON file for each measurement and ``report.json`` to ``out``. May be
    interrupted: measurements that are in ``out`` are kept. Costs two passes over the test and transfer prompts. A
    missed limit is recorded in ``checks`` and ``passed``; it is not an error here.

    Args:
        artifact: Exported pruned folder, with ``tokenizer.json``, ``reference.npz`` and ``sieve_edge.json``.
        dense: Exported dense folder.
        examples: Splits ``test`` and ``transfer``.
        task: The task.
        target: Device and limits.
        tolerance: Allowed relative loss on the test split, a fraction.
        seed: Seed of the intervals.
        source_mib: Size of the weights that the build started from.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        The report's figures, JSON-compatible.
    """
    facts = _read_facts(artifact, task)
    folders = {"dense": dense, "pruned": artifact}
    tokens = {name: _tokenize(folder, examples, task) for name, folder in folders.items()}
    labels = {split: np.asarray([item.label for item in examples[split]], dtype=np.int64) for split in SPLITS}
    device = _Device(target, out, progress)
    # First, since it shows within seconds that the runtime loads the file and computes what it should.
    drift = device.run(
        "reference", 1, "comparisons", job="reference", folder=str(artifact), exact=target.quantization == "F32"
    )
    scores = _score(device, folders, tokens)
    result = {
        "task": task.name,
        "target": target.name,
        "kept_fraction": facts["kept_fraction"],
        **_quality(scores, labels, facts, seed),
        **_cost(device, folders, tokens, seed),
        "size_mib": {"source": source_mib, **{name: weights_mib(folder) for name, folder in folders.items()}},
        "max_logit_difference": drift["max_difference"],
        "drift": {"kl": drift["kl"], "top1": drift["top1"], "kl_limit": kl_limit(artifact, target)},
    }
    result["checks"] = make_checks(result, target, tolerance)
    result["passed"] = all(check["passed"] for check in result["checks"])
    write_json(out / REPORT, result)
    return result


def workload_prompt(prompts: Sequence[Sequence[int]], tokens: int | None) -> list[int]:
    """Make the prompt that is timed, from the task's own prompts.

    Args:
        prompts: Token lists.
        tokens: Wanted length; None for the median of ``prompts``.

    Returns:
        The prompt nearest to that length, cut or repeated to it.
    """
    wanted = tokens or int(np.median([len(prompt) for prompt in prompts]))
    nearest = min(prompts, key=lambda prompt: abs(len(prompt) - wanted))
    ids: list[int] = np.resize(np.asarray(nearest), wanted).tolist()
    return ids


def _timed_prompts(prompts: Mapping[str, list[list[int]]], tokens: int | None) -> dict[str, list[int]]:
    """Give both models the same text, in as many tokens as it takes each; its length is set in the dense model's."""
    dense = workload_prompt(prompts["dense"], tokens)
    if prompts["pruned"] == prompts["dense"]:
        return {"dense": dense, "pruned": dense}
    # Of a text that is cut or repeated, the other tokenizer's share is that of the whole split.
    share = sum(map(len, prompts["pruned"])) / sum(map(len, prompts["dense"]))
    return {"dense": dense, "pruned": workload_prompt(prompts["pruned"], round(len(dense) * share))}


def weights_mib(folder: Path) -> float:
    """Measure the files that hold weights, and the graph.

    Args:
        folder: Exported folder.

    Returns:
        MiB.
    """
    return sum(file.stat().st_size for file in folder.glob(WEIGHTS)) / 2**20


def _read_facts(artifact: Path, task: Task) -> dict[str, Any]:
    file = artifact / FACTS
    facts: dict[str, Any] = read_json(file)
    labels = [list(item) for item in task.labels.items()]
    if facts.get("labels") != labels:
        raise ArtifactError(f"{file}: made for labels {facts.get('labels')}, task {task.name} has {labels}")
    for name in ("dense", "pruned"):
        if len(facts["prior"][name]) != len(task.labels):
            raise ArtifactError(f"{file}: prior.{name} has {len(facts['prior'][name])} of {len(task.labels)} values")
    return facts


def _tokenize(folder: Path, examples: Mapping[str, Sequence[Example]], task: Task) -> Tokens:
    """Tokenize the prompts of each split and the answers, as the artifact's users will."""
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ArtifactError(f"{file}: not a tokenizer ({error}); run the export again") from error
    # A tokenizer may carry the padding of its training; a prompt must be whole and alone.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prompts = {split: [tokenizer.encode(item.prompt).ids for item in examples[split]] for split in SPLITS}
    return prompts, [tokenizer.encode(answer, add_special_tokens=False).ids for answer in task.labels.values()]


def _score(
    device: _Device,
    folders: Mapping[str, Path],
    tokens: Mapping[str, Tokens],
) -> dict[str, dict[str, Float64]]:
    scores: dict[str, dict[str, Float64]] = {}
    for name, folder in folders.items():
        scores[name] = {}
        prompts, answers = tokens[name]
        for split in SPLITS:
            job = {"folder": str(folder), "prompts": prompts[split], "answers": answers, "batch_tokens": BATCH_TOKENS}
            result = device.run(f"scores-{name}-{split}", len(prompts[split]), "prompts", job="score", **job)
            scores[name][split] = np.asarray(result["scores"])
    return scores


def _quality(
    scores: Mapping[str, Mapping[str, Float64]], labels: Mapping[str, Int64], facts: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Accuracies and losses; the corrected figure is what the artifact gives with the prior that it ships."""
    rng = np.random.default_rng(seed)
    classes = scores["dense"]["test"].shape[1]
    accuracy: dict[str, Any] = {"dense": {}, "pruned": {}}
    predicted: dict[str, dict[str, Int64]] = {"dense": {}, "pruned": {}}
    for name, of_split in scores.items():
        prior_K = np.asarray(facts["prior"][name], dtype=np.float64)
        for split, scores_NK in of_split.items():
            predicted[name][split] = predict(scores_NK, prior_K)
            accuracy[name][split] = {
                "raw": balanced_accuracy(predict(scores_NK), labels[split], classes),
                "corrected": balanced_accuracy(predicted[name][split], labels[split], classes),
                "interval95": accuracy_interval(predicted[name][split], labels[split], classes, rng),
            }
    majority = np.full_like(labels["test"], np.bincount(labels["test"]).argmax())
    accuracy["majority"] = balanced_accuracy(majority, labels["test"], classes)
    intervals = {
        split: loss_interval(predicted["dense"][split], predicted["pruned"][split], labels[split], classes, rng)
        for split in SPLITS
    }
    loss = {
        "selection": relative_loss(facts["selection"]["pruned"], facts["selection"]["dense"]),
        **{
            split: relative_loss(accuracy["pruned"][split]["corrected"], accuracy["dense"][split]["corrected"])
            for split in SPLITS
        },
        "interval95": intervals["test"],
        "transfer_interval95": intervals["transfer"],
    }
    return {"accuracy": accuracy, "loss": loss}


def _cost(
    device: _Device,
    folders: Mapping[str, Path],
    tokens: Mapping[str, Tokens],
    seed: int,
) -> dict[str, Any]:
    """Time both models in one process, then weigh each in a fresh one."""
    workload = device.target.workload
    timed = _timed_prompts({name: prompts["test"] for name, (prompts, _) in tokens.items()}, workload.prompt_tokens)
    answer_tokens = max(len(answer) for _, answers in tokens.values() for answer in answers)
    lengths = {"decode_tokens": workload.decode_tokens, "repeats": workload.repeats}
    paths = {name: str(folder) for name, folder in folders.items()}
    job: dict[str, Any] = {"prompts": timed, "answer_tokens": answer_tokens, "seed": seed, **lengths}
    timings = device.run("timing", workload.repeats, "repeats", job="time", folders=paths, **job)
    memory = {}
    for name, path in paths.items():
        job = {"folder": path, "prompt": timed[name], "answer_tokens": answer_tokens}
        memory[name] = device.run(f"memory-{name}", 1, "processes", job="memory", **job)
    return {
        "workload": {
            "prompt_tokens": len(timed["pruned"]),
            "prompt_tokens_dense": len(timed["dense"]),
            "answer_tokens": answer_tokens,
            **lengths,
            "threads": device.target.threads,
            "execution_provider": device.target.execution_provider,
            "examples": {split: len(tokens["pruned"][0][split]) for split in SPLITS},
        },
        # The samples stay in the measurement's own file; a report needs the figures.
        "timing": {
            name: {field: value for field, value in timing.items() if not field.endswith("_samples_ms")}
            for name, timing in timings.items()
        },
        "peak_memory_mib": {name: run["peak_mib"] for name, run in memory.items()},
        "baseline_memory_mib": {name: run["baseline_mib"] for name, run in memory.items()},
    }

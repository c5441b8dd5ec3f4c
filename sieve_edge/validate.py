"""Stage: what the exported artifact is worth on the device, against the dense model in the same runtime.

Everything is measured in worker processes without torch, on this machine or behind a connection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sieve_edge.config import Target
from sieve_edge.device.check import SAMPLE
from sieve_edge.device.checks import kl_limit, make_checks
from sieve_edge.device.place import Place
from sieve_edge.device.runtimes import WEIGHTS, end_tokens, open_tokenizer
from sieve_edge.device.workload import timed_prompts
from sieve_edge.errors import ArtifactError
from sieve_edge.files import digest, read_json, write_json
from sieve_edge.progress import Progress
from sieve_edge.resolve import settings_json
from sieve_edge.task.differences import find_differences
from sieve_edge.task.evaluate import Grades, graded_loss, loss_interval, relative_loss, score_interval
from sieve_edge.task.exam import RAW, Exam, LabelExam
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import Example
from sieve_edge.task.written import WrittenExam
from sieve_edge.task_config import Task

FACTS = "sieve_edge.json"
REPORT = "report.json"
DIFFERENCES = "differences.json"
SPLITS = ("test", "transfer")
SAMPLE_EXAMPLES = 50
BATCH_TOKENS = 1024
"""Tokens scored in one batch; fixed, so that scores do not depend on the machine."""


@dataclass(frozen=True)
class _Device:
    """Runs jobs for one target, each once: a result that is in ``out`` is not measured again."""

    target: Target
    place: Place
    out: Path
    progress: Progress
    packages: Mapping[str, str | None]
    """Versions there: what another runtime measured is not kept."""

    def run(self, name: str, total: int, unit: str, **fields: Any) -> dict[str, Any]:
        """Do a worker job, or read what an interrupted validation left of it."""
        file = self.out / f"{name}.json"
        kept = read_json(file) if file.is_file() else {}
        asked = digest([self.place.name, settings_json(self.target), self.packages, fields])
        if kept.get("job") != asked:
            with self.progress.task(name, total, unit) as advance:
                kept = {"job": asked, "result": self.place.run(fields, advance)}
            write_json(file, kept)
        result: dict[str, Any] = kept["result"]
        return result


def validate(
    artifact: Path,
    dense: Path,
    examples: Mapping[str, Sequence[Example]],
    examiner: Examiner,
    target: Target,
    place: Place,
    tolerance: float,
    seed: int,
    source_mib: float,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Score, time and weigh the artifact and the dense model, and check the target's limits.

    Reads both exported folders; writes one JSON file for each measurement, ``differences.json`` (test examples that the
    models answer differently), ``sample.json`` (for checks on devices) and ``report.json`` to ``out``. May be
    interrupted: measurements that are in ``out`` are kept. Costs two passes over the test and transfer prompts. A
    missed limit is recorded in ``checks`` and ``passed``; it is not an error here. Where the target's device is not at
    hand, time and memory are measured here but their limits are not verified.

    Args:
        artifact: Exported pruned folder, with ``tokenizer.json``, ``reference.npz`` and ``sieve_edge.json``.
        dense: Exported dense folder.
        examples: Splits ``test`` and ``transfer``.
        examiner: Says what is asked.
        target: Device and limits.
        place: Where it is measured, entered.
        tolerance: Allowed relative loss on the test split, a fraction.
        seed: Seed of the intervals.
        source_mib: Size of the weights that the build started from.
        out: Work folder; kept when interrupted.
        progress: Where progress is shown.

    Returns:
        The report's figures, JSON-compatible.
    """
    facts = _read_facts(artifact, examiner.task)
    folders = {"dense": dense, "pruned": artifact}
    exams = {name: _exams(folder, examples, examiner, facts["ends"]) for name, folder in folders.items()}
    before = place.facts()
    device = _Device(target, place, out, progress, before["packages"])
    # First, since it shows within seconds that the runtime loads the file and computes what it should.
    drift = device.run(
        "reference", 1, "comparisons", job="reference", folder=str(artifact), exact=target.quantization == "F32"
    )
    answers = _answers(device, folders, exams, examiner.task)
    result = {
        "task": examiner.task.name,
        "metric": examiner.task.metric,
        "target": target.name,
        "validated_on": place.name,
        "kept_fraction": facts["kept_fraction"],
        **_quality(answers, exams, examiner, examples, facts, seed, out),
        **_cost(device, folders, exams, examiner.task, seed),
        "size_mib": {"source": source_mib, **{name: weights_mib(folder) for name, folder in folders.items()}},
        "max_logit_difference": drift["max_difference"],
        "drift": {"kl": drift["kl"], "top1": drift["top1"], "kl_limit": kl_limit(artifact, target)},
        "device": {"providers": drift["providers"], "before": before, "after": place.facts()},
    }
    result["checks"] = make_checks(result, target, tolerance)
    result["passed"] = all(check["passed"] is not False for check in result["checks"])
    test = (examples["test"], exams["pruned"]["test"], examiner.task, answers["pruned"]["test"])
    write_json(out / SAMPLE, _sample(*test, facts["prior"]["pruned"]))
    write_json(out / REPORT, result)
    return result


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
    if facts.get("labels") != labels or facts.get("metric") != task.metric:
        raise ArtifactError(
            f"{file}: made for metric {facts.get('metric')}, labels {facts.get('labels')}; task {task.name} has "
            f"{task.metric}, {labels}"
        )
    for name in ("dense", "pruned"):
        if len(facts["prior"][name]) != len(task.labels):
            raise ArtifactError(f"{file}: prior.{name} has {len(facts['prior'][name])} of {len(task.labels)} values")
    return facts


def _exams(
    folder: Path, examples: Mapping[str, Sequence[Example]], examiner: Examiner, ends: Sequence[str]
) -> dict[str, Exam]:
    """Put each split into the tokens of an exported folder, as the artifact's users will."""
    tokenizer = open_tokenizer(folder)
    last = end_tokens(tokenizer, ends)
    return {split: examiner.exam(examples[split], tokenizer, last) for split in SPLITS}


def _answers(
    device: _Device, folders: Mapping[str, Path], exams: Mapping[str, Mapping[str, Exam]], task: Task
) -> dict[str, dict[str, list[Any]]]:
    """Let both models take the test and the transfer split."""
    answers: dict[str, dict[str, list[Any]]] = {}
    for name, folder in folders.items():
        answers[name] = {}
        for split, exam in exams[name].items():
            job = {"folder": str(folder), **_asked(exam, task)}
            answers[name][split] = device.run(f"answers-{name}-{split}", len(exam.prompts), "prompts", **job)["answers"]
    return answers


def _asked(exam: Exam, task: Task) -> dict[str, Any]:
    """Make the worker's job of an exam."""
    job: dict[str, Any] = {"prompts": list(exam.prompts), "batch_tokens": BATCH_TOKENS}
    if isinstance(exam, WrittenExam):
        ends = {"stop": list(task.stop), "ends": exam.ends}
        return {**job, "job": "write", "new_tokens": task.max_new_tokens, **ends}
    if isinstance(exam, LabelExam):
        return {**job, "job": "score", "answers": list(exam.answer_ids)}
    raise TypeError(f"no worker takes {type(exam).__name__}")


def _sample(examples: Sequence[Example], exam: Exam, task: Task, answers: Sequence[Any], prior: Any) -> dict[str, Any]:
    """Keep a part of the test split with the artifact's answers, for checks on devices."""
    job = _asked(exam.part(0, SAMPLE_EXAMPLES), task)
    texts = [example.prompt for example in examples[:SAMPLE_EXAMPLES]]
    return {"texts": texts, "job": job, "answers": answers[:SAMPLE_EXAMPLES], "prior": prior}


def _quality(
    answers: Mapping[str, Mapping[str, Any]],
    exams: Mapping[str, Mapping[str, Exam]],
    examiner: Examiner,
    examples: Mapping[str, Sequence[Example]],
    facts: Mapping[str, Any],
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Scores and losses; the corrected figure is what the artifact gives with the prior that it ships."""
    rng = np.random.default_rng(seed)
    accuracy: dict[str, Any] = {"dense": {}, "pruned": {}}
    grades: dict[str, dict[str, Grades]] = {"dense": {}, "pruned": {}}
    for name, of_split in answers.items():
        for split, given in of_split.items():
            exam = exams[name][split]
            graded = grades[name][split] = exam.grade(given, facts["prior"][name])
            accuracy[name][split] = {
                "raw": exam.grade(given, RAW).score,
                "corrected": graded.score,
                "interval95": score_interval(graded, rng),
                "unjudged": int(np.isnan(graded.credits_N).sum()),
            }
    said = {name: of["test"] for name, of in answers.items()}
    worth = {name: of["test"] for name, of in grades.items()}
    write_json(out / DIFFERENCES, find_differences(examiner.task, examples["test"], said, worth, facts["prior"]))
    named, baseline = examiner.baseline(exams["dense"]["test"], examples["test"])
    accuracy["baseline"] = {"is": named, "score": baseline}
    pairs = {split: (grades["dense"][split], grades["pruned"][split]) for split in SPLITS}
    intervals = {split: loss_interval(*pair, rng) for split, pair in pairs.items()}
    loss = {
        "selection": relative_loss(facts["selection"]["pruned"], facts["selection"]["dense"]),
        **{split: graded_loss(*pair) for split, pair in pairs.items()},
        "interval95": intervals["test"],
        "transfer_interval95": intervals["transfer"],
    }
    agreement = examiner.agreement(exams["pruned"]["test"], answers["pruned"]["test"])
    return {"accuracy": accuracy, "loss": loss} | ({} if agreement is None else {"judge_agreement": agreement})


def _cost(
    device: _Device,
    folders: Mapping[str, Path],
    exams: Mapping[str, Mapping[str, Exam]],
    task: Task,
    seed: int,
) -> dict[str, Any]:
    """Time both models in one process, then weigh each in a fresh one."""
    workload = device.target.workload
    timed = timed_prompts({name: of_split["test"].prompts for name, of_split in exams.items()}, workload.prompt_tokens)
    answer_tokens = max(_answer_tokens(of_split["test"], task) for of_split in exams.values())
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
            "examples": {split: len(exam.prompts) for split, exam in exams["pruned"].items()},
        },
        # The samples stay in the measurement's own file; a report needs the figures.
        "timing": {
            name: {field: value for field, value in timing.items() if not field.endswith("_samples_ms")}
            for name, timing in timings.items()
        },
        "peak_memory_mib": {name: run["peak_mib"] for name, run in memory.items()},
        "baseline_memory_mib": {name: run["baseline_mib"] for name, run in memory.items()},
    }


def _answer_tokens(exam: Exam, task: Task) -> int:
    """Length of the longest answer, which is the one that is timed."""
    return max(map(len, exam.answer_ids)) if isinstance(exam, LabelExam) else task.max_new_tokens

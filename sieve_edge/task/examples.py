"""Examples of a task: read from tables, cleaned of duplicates, and split so that no text is seen twice."""

import csv
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sieve_edge.config import Source, Task
from sieve_edge.errors import TaskError
from sieve_edge.files import digest
from sieve_edge.resolve import package_file

SPLITS = ("calibration", "selection", "test", "transfer")


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        text: The text, as the prompt shows it.
        prompt: The whole prompt.
        label: Index into the task's labels.
    """

    text: str
    prompt: str
    label: int


def load_splits(task: Task, seed: int) -> dict[str, tuple[Example, ...]]:
    """Read a task's data and split it, disjoint by text; the same seed gives the same splits.

    Args:
        task: The task.
        seed: Seed of the shuffle.

    Returns:
        Split name -> examples.

    Raises:
        TaskError: If data are missing, broken, too few, or have one label only.
    """
    taken: set[str] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    main = _read_source(task, task.source, seed, taken)
    sizes = task.splits
    needed = sizes.calibration + sizes.selection + sizes.test
    if len(main) < needed:
        raise TaskError(
            f"task {task.name}: {task.source.path} has {len(main)} different usable texts, "
            f"calibration + selection + test need {needed}; lower splits.* or add data"
        )
    start = 0
    for name in SPLITS[:3]:
        size = getattr(sizes, name)
        splits[name] = tuple(main[start : start + size])
        start += size
    transfer = _read_source(task, task.transfer, seed, taken)
    if len(transfer) < sizes.transfer:
        raise TaskError(
            f"task {task.name}: {task.transfer.path} has {len(transfer)} different usable texts, "
            f"transfer needs {sizes.transfer}; lower splits.transfer or add data"
        )
    splits["transfer"] = tuple(transfer[: sizes.transfer])
    for name, examples in splits.items():
        if len({example.label for example in examples}) < len(task.labels):
            raise TaskError(f"task {task.name}: split {name} lacks one of the labels {list(task.labels)}; add data")
    return splits


def label_ids(task: Task, encode: Callable[..., list[int]]) -> list[list[int]]:
    """Tokenize a task's labels.

    Args:
        task: The task.
        encode: ``LoadedModel.encode`` of the model that is asked.

    Returns:
        Token ids of each label.

    Raises:
        TaskError: If the tokens of one label begin those of another.
    """
    answers = list(task.labels.values())
    ids = [encode(answer, special=False) for answer in answers]
    for first, second in itertools.permutations(range(len(ids)), 2):
        if ids[second][: len(ids[first])] == ids[first]:
            raise TaskError(
                f"task {task.name}: label '{answers[first]}' is the beginning of '{answers[second]}' in this model's "
                "tokens, so the two cannot be told apart; choose other answers"
            )
    return ids


def splits_sha256(splits: dict[str, tuple[Example, ...]]) -> dict[str, str]:
    """Hash each split, so that manifests can say exactly which examples were used.

    Args:
        splits: What ``load_splits`` returned.

    Returns:
        Split name -> SHA-256 over prompts and labels in order.
    """
    return {name: digest([[item.prompt, item.label] for item in items]) for name, items in splits.items()}


def _read_source(task: Task, source: Source, seed: int, taken: set[str]) -> list[Example]:
    labels = {value: index for index, value in enumerate(task.labels)}
    examples = []
    seen = set()
    for number, row in _rows(source):
        if any(row[column] != value for column, value in source.where.items()):
            continue
        value = row[source.label].strip()
        if value not in labels:
            raise TaskError(f"{source.path}: line {number}: label '{value}' is not one of {list(labels)}")
        seen.add(value)
        words = row[source.text].split()
        text = " ".join(words[: source.max_words])
        key = text.casefold()
        if not text or key in taken:
            continue
        taken.add(key)
        examples.append(Example(text, task.prompt.replace("{text}", text), labels[value]))
    if not seen:
        raise TaskError(f"{source.path}: no row fits where={source.where}; check the filter or the file")
    if len(seen) < len(labels):
        raise TaskError(f"{source.path}: has only the label {sorted(seen)}, must have all of {list(labels)}")
    random.Random(seed).shuffle(examples)  # noqa: S311 (splits need repeatability, not secrecy)
    return examples


def _rows(source: Source) -> list[tuple[int, dict[str, str]]]:
    path = source_path(source)
    if not path.is_file():
        raise TaskError(f"{source.path}: file not found ({path})")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = reader.fieldnames or []
            wanted = {source.text, source.label, *source.where}
            missing = sorted(wanted - set(columns))
            if not columns:
                raise TaskError(f"{source.path}: the file is empty; it needs a header and rows")
            if missing:
                raise TaskError(f"{source.path}: no column {missing}; the file has {list(columns)}")
            return [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise TaskError(f"{source.path}: not UTF-8 at byte {error.start}; convert it, e.g. with iconv") from error
    except csv.Error as error:
        raise TaskError(f"{source.path}: not a CSV ({error})") from error


def source_path(source: Source) -> Path:
    """Find the file of a source.

    Args:
        source: The source.

    Returns:
        Its path; whether the file exists is for the caller to see.
    """
    if source.path.startswith("file:"):
        return Path(source.path.removeprefix("file:")).expanduser()
    return package_file(source.path)

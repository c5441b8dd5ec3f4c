"""Examples of a task: read from tables, cleaned of duplicates, and split so that no text is seen twice."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sieve_edge.config import Source, Task
from sieve_edge.errors import TaskError
from sieve_edge.files import digest
from sieve_edge.task.tables import read_rows


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        text: The text, as the prompt shows it.
        prompt: The whole prompt.
        label: Index into the task's labels.
        source: Where it is from: 0 is the task's main source, or its transfer source; from 1 on its further
            calibration sources.
        keys: What no two examples share: the text, as it is and before it was cut to ``max_words``, casefolded.
    """

    text: str
    prompt: str
    label: int
    source: int = 0
    keys: frozenset[str] = frozenset()


def load_splits(task: Task, seed: int) -> dict[str, tuple[Example, ...]]:
    """Read a task's data and split it, disjoint by text; the same seed gives the same splits.

    Further calibration sources give no text that any split uses. They change neither the selection, test nor transfer
    split, and every part of the calibration split holds its sources in about the same proportion.

    Args:
        task: The task.
        seed: Seed of the shuffle.

    Returns:
        Split name -> examples.

    Raises:
        TaskError: If data are missing, broken, too few, or have one label only.
    """
    taken: set[str] = set()
    sizes = task.splits
    shares = _shares(sizes.calibration, [1.0, *(source.weight for source in task.calibration_sources)])
    main = _read_source(task, task.source, 0, seed, taken)
    # Selection and test lie where they would without further sources, if there are texts enough for that.
    start = min(sizes.calibration, len(main) - sizes.selection - sizes.test)
    if start < shares[0]:
        raise TaskError(
            f"task {task.name}: {task.source.path} has {len(main)} different usable texts, calibration {shares[0]} + "
            f"selection {sizes.selection} + test {sizes.test} need {shares[0] + sizes.selection + sizes.test}; "
            "lower splits.* or add data"
        )
    middle = start + sizes.selection
    transfer = _read_source(task, task.transfer, 0, seed, taken)
    if len(transfer) < sizes.transfer:
        raise TaskError(
            f"task {task.name}: {task.transfer.path} has {len(transfer)} different usable texts, "
            f"transfer needs {sizes.transfer}; lower splits.transfer or add data"
        )
    scored = {
        "selection": tuple(main[start:middle]),
        "test": tuple(main[middle : middle + sizes.test]),
        "transfer": tuple(transfer[: sizes.transfer]),
    }
    calibration = _calibration(task, seed, main, shares, scored)
    splits = {"calibration": calibration, **scored}
    for name, examples in splits.items():
        if len({example.label for example in examples}) < len(task.labels):
            raise TaskError(f"task {task.name}: split {name} lacks one of the labels {list(task.labels)}; add data")
    return splits


def count_by_source(task: Task, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Count calibration examples by where they are from, for the manifest.

    Args:
        task: The task.
        examples: Examples of its calibration split.

    Returns:
        ``path``, ``where`` and ``prompts`` of each source, the main one first.
    """
    sources = (task.source, *task.calibration_sources)
    return [
        {"path": source.path, "where": source.where, "prompts": sum(item.source == number for item in examples)}
        for number, source in enumerate(sources)
    ]


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


def _calibration(
    task: Task, seed: int, main: Sequence[Example], shares: Sequence[int], scored: Mapping[str, Sequence[Example]]
) -> tuple[Example, ...]:
    """Mix the first examples of the main source with those of the further ones."""
    parts = [main[: shares[0]]]
    for number, (source, share) in enumerate(zip(task.calibration_sources, shares[1:], strict=True), 1):
        used = {key for examples in (*scored.values(), *parts) for item in examples for key in item.keys}
        part = _read_source(task, source, number, seed, used)
        if len(part) < share:
            raise TaskError(
                f"task {task.name}: {source.path} has {len(part)} different usable texts that no other split uses, its "
                f"share of the calibration split is {share}; lower its weight or splits.calibration, or add data"
            )
        parts.append(part[:share])
    return _interleaved(parts)


def _shares(size: int, weights: Sequence[float]) -> list[int]:
    """Divide a split in proportion to weights, each at least one, by largest remainder."""
    shares = [1] * len(weights)
    for _ in range(size - len(weights)):
        lacking = [size * weight / sum(weights) - share for weight, share in zip(weights, shares, strict=True)]
        shares[lacking.index(max(lacking))] += 1
    return shares


def _interleaved(parts: Sequence[Sequence[Example]]) -> tuple[Example, ...]:
    """Spread each part evenly over the whole; the order inside a part stays."""
    places = [
        ((place + 0.5) / len(part), number, place) for number, part in enumerate(parts) for place in range(len(part))
    ]
    return tuple(parts[number][place] for _, number, place in sorted(places))


def _read_source(task: Task, source: Source, number: int, seed: int, taken: set[str]) -> list[Example]:
    labels = {value: index for index, value in enumerate(task.labels)}
    examples = []
    seen = set()
    for line, row in read_rows(source):
        if any(row[column] != value for column, value in source.where.items()):
            continue
        value = row[source.label].strip()
        if value not in labels:
            raise TaskError(f"{source.path}: line {line}: label '{value}' is not one of {list(labels)}")
        seen.add(value)
        words = row[source.text].split()
        text = " ".join(words[: source.max_words])
        keys = frozenset((text.casefold(), " ".join(words).casefold()))
        if not text or not taken.isdisjoint(keys):
            continue
        taken |= keys
        examples.append(Example(text, task.prompt.replace("{text}", text), labels[value], number, keys))
    if not seen:
        raise TaskError(f"{source.path}: no row fits where={source.where}; check the filter or the file")
    if len(seen) < len(labels):
        raise TaskError(f"{source.path}: has only the label {sorted(seen)}, must have all of {list(labels)}")
    random.Random(seed).shuffle(examples)  # noqa: S311 (splits need repeatability, not secrecy)
    return examples

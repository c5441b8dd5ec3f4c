"""Examples of a task: read from tables, cleaned of duplicates, and split so that no text is seen twice."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sieve_edge.errors import TaskError
from sieve_edge.files import digest
from sieve_edge.protocols import Chat
from sieve_edge.task.prompts import Message, Shot, Values, write_chat, write_messages, write_prompt
from sieve_edge.task.rows import is_wanted, right_answer
from sieve_edge.task.tables import read_rows
from sieve_edge.task_config import TEXT, Source, Task

TUNING = "tuning"
"""Split that only tune reads; a task may have none."""

Dropped = Counter[tuple[str, str]]
"""``(source's place in the task's file, why)`` -> rows that are no examples, since their text is one already."""


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        text: The text, as the prompt shows it.
        prompt: The whole prompt.
        label: Index into the task's labels; 0 where answers are written.
        source: Where it is from: 0 is the task's main source, or its transfer source; from 1 on its further
            calibration sources.
        keys: What no two examples share: the text, as it is and before it was cut to ``max_words``, casefolded.
        answer: A right answer, as it follows the prompt.
        references: All right answers, where answers are written.
        values: What the example puts into the task's templates.
        cut: Whether its text was cut to ``max_words``.
        messages: Of a task with messages, these.
    """

    text: str
    prompt: str
    label: int
    source: int = 0
    keys: frozenset[str] = frozenset()
    answer: str = ""
    references: tuple[str, ...] = ()
    values: Values = field(default_factory=dict)
    cut: bool = False
    messages: tuple[Message, ...] = ()

    @property
    def question(self) -> str:
        """What is asked, without a model's way of writing chats."""
        return "\n\n".join(message["content"] for message in self.messages) or self.prompt


def load_splits(
    task: Task, seed: int, chat: Chat | None = None, dropped: Dropped | None = None
) -> dict[str, tuple[Example, ...]]:
    """Read a task's data and split it, disjoint by text; the same seed gives the same splits.

    Further calibration sources give no text that any split uses. They change neither the selection, test nor transfer
    split, and every part of the calibration split holds its sources in about the same proportion.

    Args:
        task: The task.
        seed: Seed of the shuffle.
        chat: The model's chats, for the prompts of a task with messages; None for the messages alone.
        dropped: Counts the rows that are left out because of their text, for ``tasks check``.

    Returns:
        Split name -> examples; those that every prompt shows as worked examples are in none, and ``TUNING`` is there
        only if the task asks for it.

    Raises:
        TaskError: If data are missing, broken, too few, or have one label only.
    """
    taken: set[str] = set()
    sizes = task.splits
    shares = _shares(sizes.calibration, [1.0, *(source.weight for source in task.calibration_sources)])
    dropped = Counter() if dropped is None else dropped
    main = _read_source(task, task.source, 0, seed, taken, dropped)
    # Selection and test lie where they would without further sources, if there are texts enough for that.
    others = sizes.selection + sizes.test + sizes.tuning
    start = min(sizes.calibration, len(main) - others)
    if start < shares[0]:
        tuning = f" + tuning {sizes.tuning}" if sizes.tuning else ""
        raise TaskError(
            f"task {task.name}: {task.source.path} has {len(main)} different usable texts, calibration {shares[0]} + "
            f"selection {sizes.selection} + test {sizes.test}{tuning} need {shares[0] + others}; "
            "lower splits.* or add data"
        )
    middle = start + sizes.selection
    end = middle + sizes.test
    transfer = _read_source(task, task.transfer, 0, seed, taken, dropped)
    if len(transfer) < sizes.transfer:
        raise TaskError(
            f"task {task.name}: {task.transfer.path} has {len(transfer)} different usable texts, "
            f"transfer needs {sizes.transfer}; lower splits.transfer or add data"
        )
    scored = {
        "selection": tuple(main[start:middle]),
        "test": tuple(main[middle:end]),
        "transfer": tuple(transfer[: sizes.transfer]),
    }
    if sizes.tuning:
        scored[TUNING] = tuple(main[end : end + sizes.tuning])
    calibration = _calibration(task, seed, main, shares, scored, dropped)
    shown, calibration = _draw_shots(task, calibration)
    splits = {"calibration": calibration, **scored}
    for name, examples in splits.items():
        if len({example.label for example in examples}) < len(task.labels):
            raise TaskError(f"task {task.name}: split {name} lacks one of the labels {list(task.labels)}; add data")
    return {name: tuple(_asked(task, item, shown, chat) for item in examples) for name, examples in splits.items()}


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


def cut_fractions(splits: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Say how often texts were cut to ``max_words``.

    Args:
        splits: What ``load_splits`` returned.

    Returns:
        Split name -> fraction of its examples.
    """
    return {name: sum(item.cut for item in items) / len(items) for name, items in splits.items()}


def splits_sha256(splits: dict[str, tuple[Example, ...]]) -> dict[str, str]:
    """Hash each split, so that manifests can say exactly which examples were used.

    Args:
        splits: What ``load_splits`` returned.

    Returns:
        Split name -> SHA-256 over prompts and right answers in order.
    """
    return {
        name: digest([[item.prompt, item.label, *item.references] for item in items]) for name, items in splits.items()
    }


def _calibration(
    task: Task,
    seed: int,
    main: Sequence[Example],
    shares: Sequence[int],
    scored: Mapping[str, Sequence[Example]],
    dropped: Dropped,
) -> tuple[Example, ...]:
    """Mix the first examples of the main source with those of the further ones."""
    parts = [main[: shares[0]]]
    for number, (source, share) in enumerate(zip(task.calibration_sources, shares[1:], strict=True), 1):
        used = {key for examples in (*scored.values(), *parts) for item in examples for key in item.keys}
        part = _read_source(task, source, number, seed, used, dropped)
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


def _asked(task: Task, example: Example, shots: Sequence[Shot], chat: Chat | None) -> Example:
    if not task.messages:
        return replace(example, prompt=write_prompt(task, example.values, shots))
    asked = replace(example, messages=tuple(write_messages(task, example.values, shots)))
    return replace(asked, prompt=write_chat(asked.messages, chat) if chat else asked.question)


def _draw_shots(task: Task, calibration: Sequence[Example]) -> tuple[list[Shot], tuple[Example, ...]]:
    """Take the worked examples out of the calibration split: its first ones, the labels in turn."""
    left = list(calibration)
    shots = []
    for number in range(task.shots):
        wanted = number % max(len(task.labels), 1)
        example = next((item for item in left if item.label == wanted), None)
        if example is None:
            raise TaskError(
                f"task {task.name}: the calibration split has too few examples of label "
                f"'{list(task.labels)[wanted]}' for {task.shots} shots; lower shots or raise splits.calibration"
            )
        left.remove(example)
        shots.append(Shot(example.values, example.answer))
    return shots, tuple(left)


def _read_source(
    task: Task, source: Source, number: int, seed: int, taken: set[str], dropped: Dropped
) -> list[Example]:
    examples = []
    seen, others = set(), frozenset(taken)
    for line, row in read_rows(source):
        if not is_wanted(source, row):
            continue
        label, references = right_answer(task, source, row, line)
        seen.add(label)
        words = row[source.text].split()
        shortened = " ".join(words[: source.max_words])
        cut = len(words) > len(words[: source.max_words])
        # Lines and indents are a part of tables and code; which texts are the same is decided without them.
        text = shortened if cut or source.collapse_spaces else row[source.text].strip()
        keys = frozenset((shortened.casefold(), " ".join(words).casefold()))
        if not text or not taken.isdisjoint(keys):
            why = "no text" if not text else "duplicate" if others.isdisjoint(keys) else "in another source"
            dropped[_place(task, source, number), why] += 1
            continue
        taken |= keys
        values = {TEXT: text, **{name: row[column] for name, column in source.columns.items()}}
        answer = references[0] if task.messages or not task.writes else f" {references[0]}"
        known = references if task.writes else ()
        examples.append(Example(text, "", label, number, keys, answer, known, values, cut))
    if not seen:
        raise TaskError(f"{source.path}: no row fits where={source.where}; check the filters or the file")
    if len(seen) < len(task.labels):
        found = sorted(list(task.labels)[label] for label in seen)
        raise TaskError(f"{source.path}: has only the label {found}, must have all of {list(task.labels)}")
    random.Random(seed).shuffle(examples)  # noqa: S311 (splits need repeatability, not secrecy)
    return examples


def _place(task: Task, source: Source, number: int) -> str:
    if number:
        return f"calibration_sources.{number - 1}"
    return "transfer" if source is task.transfer else "source"

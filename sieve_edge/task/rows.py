"""What a source's row means: whether it is an example, its label and the answers that count as right."""

import json
import re

from sieve_edge.errors import TaskError
from sieve_edge.task.tables import Row
from sieve_edge.task_config import Source, Task


def is_wanted(source: Source, row: Row) -> bool:
    """Say whether a source's filters let a row through.

    Args:
        source: The source.
        row: One of its rows.

    Returns:
        True if it is an example.
    """
    if any(row[column] != value for column, value in source.where.items()):
        return False
    if any(row[column] == value for column, value in source.where_not.items()):
        return False
    return not source.label_values or _label_text(source, row) in source.label_values


def _label_text(source: Source, row: Row) -> str:
    value = row[source.label].strip()
    if source.label_pattern is None:
        return value
    found = re.search(source.label_pattern, value)
    return "" if found is None else found.group(1) or ""


def right_answer(task: Task, source: Source, row: Row, line: int) -> tuple[int, tuple[str, ...]]:
    """Read a row's label, and the answers that count as right.

    Args:
        task: The task.
        source: The source.
        row: One of its rows.
        line: Where the row stands, for people.

    Returns:
        Index into the task's labels, 0 where answers are written; and the answers.

    Raises:
        TaskError: If the row has another label, or no answer.
    """
    value = _label_text(source, row)
    value = source.label_values.get(value, value)
    if not task.writes:
        labels = list(task.labels)
        if value not in task.labels:
            raise TaskError(f"{source.path}: line {line}: label '{value}' is not one of {labels}")
        return labels.index(value), (task.labels[value],)
    references = _listed(value)
    if not all(references):
        raise TaskError(
            f"{source.path}: line {line}: column {source.label} holds no reference answer; "
            "leave such rows out by where_not"
        )
    return 0, references


def _listed(value: str) -> tuple[str, ...]:
    """Read one reference answer, a JSON list of several, or an object with such a list as SQuAD's."""
    if not value.startswith(("[", "{")):
        return (value,)
    try:
        tree = json.loads(value)
    except json.JSONDecodeError:
        return (value,)
    several = tree.get("text") if isinstance(tree, dict) else tree
    if not isinstance(several, list) or any(isinstance(each, list | dict) for each in several):
        return (value,)
    # SQuAD's list is empty where the passage does not answer the question: such a row holds none.
    return tuple(each.strip() if isinstance(each, str) else json.dumps(each) for each in several) or ("",)

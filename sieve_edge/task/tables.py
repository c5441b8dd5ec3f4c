"""Rows of a task's data, whatever holds them: CSV, JSON lines, Parquet, or a data set of the Hugging Face hub."""

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sieve_edge.errors import EnvironmentMissing, TaskError
from sieve_edge.resolve import package_file
from sieve_edge.task_config import Source

Row = dict[str, str]
_HUB = "hf:"
_LONGEST_FIELD = 2**31 - 1
_FIX_MISSING = "run: pip install 'sieve-edge[data]'"


def read_rows(source: Source) -> list[tuple[int, Row]]:
    """Read a source.

    Args:
        source: The source.

    Returns:
        Line, or number of the row from 1, and its columns; values that are no text are written as JSON.

    Raises:
        TaskError: If it is missing, broken, empty, or lacks a column.
    """
    rows = list(_hub_rows(source.path)) if source.path.startswith(_HUB) else _file_rows(source)
    if not rows:
        raise TaskError(f"{source.path}: the file is empty; it needs rows")
    wanted = {source.text, source.label, *source.columns.values(), *source.where, *source.where_not}
    for line, row in rows:
        missing = sorted(wanted - set(row))
        if missing:
            raise TaskError(f"{source.path}: no column {missing} in line {line}; there are {list(row)}")
    return rows


def _file_rows(source: Source) -> list[tuple[int, Row]]:
    local = source.path.startswith("file:")
    pattern = Path(source.path.removeprefix("file:")).expanduser() if local else package_file(source.path)
    if pattern.is_file() or not set("*?[") & set(pattern.name):
        return _one_file(source, pattern)
    files = sorted(pattern.parent.glob(pattern.name))
    if not files:
        raise TaskError(f"{source.path}: no file fits ({pattern})")
    return [row for file in files for row in _one_file(source, file)]


def _one_file(source: Source, path: Path) -> list[tuple[int, Row]]:
    if not path.is_file():
        raise TaskError(f"{source.path}: file not found ({path})")
    readers: dict[str, Callable[[Path], Iterable[tuple[int, Row]]]] = {
        ".csv": _csv_rows,
        ".jsonl": _jsonl_rows,
        ".parquet": _parquet_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TaskError(f"{source.path}: {path.suffix or 'no suffix'} is not known, must be {', '.join(readers)}")
    try:
        return list(reader(path))
    except UnicodeDecodeError as error:
        raise TaskError(f"{source.path}: not UTF-8 at byte {error.start}; convert it, e.g. with iconv") from error
    except (csv.Error, ValueError, OSError) as error:
        raise TaskError(
            f"{source.path}: {path.name} is no {path.suffix[1:].upper()} file ({_first_line(error)})"
        ) from error


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    # Passages are longer than what the module thinks a field may be; Excel begins a file with a byte-order mark.
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more cells than the header; quote cells with commas")
            yield reader.line_num, dict(row)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    tree = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error.msg}, column {error.colno}") from error
                if not isinstance(tree, dict):
                    raise ValueError(f"line {number} is no object")
                yield number, _as_text(tree)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    parquet = _import("pyarrow.parquet")
    for number, row in enumerate(parquet.read_table(path).to_pylist(), 1):
        yield number, _as_text(row)


def _hub_rows(reference: str) -> Iterator[tuple[int, Row]]:
    """Read ``hf:NAME`` or ``hf:ORGANISATION/NAME[/CONFIG]``, with ``:SPLIT``; train where none is named."""
    name, _, split = reference.removeprefix(_HUB).partition(":")
    parts = name.split("/")
    config = "/".join(parts[2:]) or None
    datasets = _import("datasets")
    try:
        table = datasets.load_dataset("/".join(parts[:2]), config, split=split or "train")
    except Exception as error:  # the library's errors share no narrower base
        # Nothing tells a name with a configuration from an organisation with a name.
        read = f"; '{parts[0]}' is taken as the organisation, as in hf:ORGANISATION/NAME/CONFIG" * (len(parts) > 1)
        raise TaskError(f"{reference}: cannot load this data set ({_first_line(error)}){read}") from error
    for number, row in enumerate(table, 1):
        yield number, _as_text(row)


def _as_text(row: dict[str, Any]) -> Row:
    return {name: value if isinstance(value, str) else _written(value) for name, value in row.items()}


def _written(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentMissing(f"{name.partition('.')[0]} cannot be imported ({error}); {_FIX_MISSING}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

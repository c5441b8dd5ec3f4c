"""Rows of every kind of table, and one clear line for each that is broken."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sieve_edge.errors import TaskError
from sieve_edge.task.tables import read_rows
from sieve_edge.task_config import Source

ROWS = [{"text": "fine, really", "label": 1, "tags": ["a", "b"]}, {"text": "zwölf\nlines", "label": 0, "tags": None}]
READ = [
    {"text": "fine, really", "label": "1", "tags": '["a", "b"]'},
    {"text": "zwölf\nlines", "label": "0", "tags": ""},
]


def write(folder, suffix):
    path = folder / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix == "jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    else:
        lines = ['"fine, really",1,"[""a"", ""b""]"', '"zwölf\nlines",0,']
        path.write_text("\n".join(["text,label,tags", *lines]), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_kind_gives_the_same_rows(suffix, tmp_path):
    rows = read_rows(Source(path=f"file:{write(tmp_path, suffix)}"))
    assert [row for _, row in rows] == READ


def test_a_data_set_of_the_hub_is_asked_for_by_name_configuration_and_split(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    for reference in ("hf:glue", "hf:org/name", "hf:org/name/small", "hf:org/name/small:validation[:100]"):
        assert [row for _, row in read_rows(Source(path=reference))] == READ
    assert asked == [
        ("glue", None, "train"),
        ("org/name", None, "train"),
        ("org/name", "small", "train"),
        ("org/name", "small", "validation[:100]"),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    for name, content in (("a.csv", "text,label\nfine,1\n"), ("a.jsonl", '{"text": "fine", "label": 1}\n')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert [row for _, row in read_rows(Source(path=f"file:{tmp_path / name}"))] == [{"text": "fine", "label": "1"}]


def test_a_long_passage_is_a_field_like_any_other(tmp_path):
    long = "word " * 60_000
    (tmp_path / "a.csv").write_text(f"text,label\n{long},1\n", encoding="utf-8")
    assert read_rows(Source(path=f"file:{tmp_path / 'a.csv'}")) == [(2, {"text": long, "label": "1"})]


def test_a_data_set_that_cannot_be_loaded_is_one_line(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(TaskError, match=r"hf:org/name: cannot load this data set \(no route to the hub\)"):
        read_rows(Source(path="hf:org/name"))
    with pytest.raises(
        TaskError, match=r"hub\); 'squad' is taken as the organisation, as in hf:ORGANISATION/NAME/CONFIG"
    ):
        read_rows(Source(path="hf:squad/plain_text"))
    with pytest.raises(TaskError, match=r"hub\)$"):
        read_rows(Source(path="hf:squad"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"text,label\n", ".txt is not known, must be .csv, .jsonl, .parquet"),
        (
            "a.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "a"',
            "a.jsonl is no JSONL file (line 2: Expecting ',' delimiter",
        ),
        ("a.csv", b"text,label\nfine,1\nFrance, is big,1\n", "line 3 has more cells than the header; quote cells"),
        ("a.jsonl", b"[1]\n", "line 1 is no object"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "no column ['label'] in line 2"),
        ("a.jsonl", b"\n", "the file is empty"),
        ("a.parquet", b"PAR1", "a.parquet is no PARQUET file"),
        ("a.csv", b"text,label\n\xff,1\n", "not UTF-8"),
    ],
)
def test_what_is_broken_is_named(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError) as caught:
        read_rows(Source(path=f"file:{tmp_path / name}"))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)

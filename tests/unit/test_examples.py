"""Splits: disjoint by text, fixed by seed, duplicates and the transfer set's overlap removed."""

import pytest

from sieve_edge.config import Task
from sieve_edge.errors import TaskError
from sieve_edge.task.examples import load_splits, splits_sha256

SIZES = {"calibration": 20, "selection": 20, "test": 20, "transfer": 20}


def rows(count, start=0):
    return [(f"text number {start + index} is here", index % 2) for index in range(count)]


def write(path, table):
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in table), encoding="utf-8")


@pytest.fixture
def make(tmp_path):
    def build(main, transfer, **changes):
        write(tmp_path / "main.csv", main)
        write(tmp_path / "transfer.csv", transfer)
        tree = {
            "name": "toy",
            "description": "A toy.",
            "source": {"path": f"file:{tmp_path / 'main.csv'}"},
            "transfer": {"path": f"file:{tmp_path / 'transfer.csv'}"},
            "prompt": "Say: {text} :",
            "labels": {"0": " no", "1": " yes"},
            "splits": SIZES,
            **changes,
        }
        return Task.model_validate(tree)

    return build


def test_splits_are_disjoint_by_text_also_from_the_transfer_set(make):
    doubled = rows(70) + [(text.upper() + "  ", label) for text, label in rows(30)]
    splits = load_splits(make(doubled, rows(60, start=40)), seed=0)
    texts = [example.text.casefold() for examples in splits.values() for example in examples]
    assert len(texts) == sum(SIZES.values())
    assert len(set(texts)) == len(texts)


def test_the_seed_fixes_the_splits_and_their_hashes(make):
    task = make(rows(100), rows(60, start=500))
    first, again, other = load_splits(task, 1), load_splits(task, 1), load_splits(task, 2)
    assert splits_sha256(first) == splits_sha256(again)
    assert all(splits_sha256(first)[name] != splits_sha256(other)[name] for name in SIZES)


def test_prompts_labels_and_the_word_limit(make):
    task = make(rows(100), rows(60, start=500))
    task = task.model_copy(update={"transfer": task.transfer.model_copy(update={"max_words": 2})})
    with pytest.raises(TaskError, match="1 different usable texts"):
        load_splits(task, 0)
    example = load_splits(make(rows(100), rows(60, start=500)), 0)["test"][0]
    assert example.prompt == f"Say: {example.text} :"
    assert example.label == int(example.text.split()[2]) % 2


def test_braces_in_a_text_are_left_alone(make):
    table = [(f"{{text}} number {index}", index % 2) for index in range(100)]
    examples = load_splits(make(table, rows(60, start=500)), 0)["test"]
    assert all(example.prompt == f"Say: {example.text} :" for example in examples)


def test_rows_are_filtered_by_other_columns(make, tmp_path):
    task = make(rows(100), rows(60, start=500))
    lines = ["text,label,source", *[f"text {index},{index % 2},{'a' if index < 80 else 'b'}" for index in range(160)]]
    (tmp_path / "main.csv").write_text("\n".join(lines) + "\n")
    source = task.source.model_copy(update={"where": {"source": "a"}})
    splits = load_splits(task.model_copy(update={"source": source}), 0)
    mine = [example for name in ("calibration", "selection", "test") for example in splits[name]]
    assert all(int(example.text.split()[1]) < 80 for example in mine)
    nothing = task.source.model_copy(update={"where": {"source": "z"}})
    with pytest.raises(TaskError, match="no row fits"):
        load_splits(task.model_copy(update={"source": nothing}), 0)

"""Splits: disjoint by text, fixed by seed, duplicates and the transfer set's overlap removed."""

from collections import Counter

import pytest

from sieve_edge.errors import TaskError
from sieve_edge.task.examples import count_by_source, load_splits, splits_sha256
from sieve_edge.task_config import Task

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
            "prompt": "Say: {{ text }} :",
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
    dropped = Counter()
    load_splits(make([*doubled, ("  ", 0)], rows(60, start=40)), 0, None, dropped)
    assert dropped == {("source", "duplicate"): 30, ("source", "no text"): 1, ("transfer", "in another source"): 30}


def test_a_text_keeps_its_lines_and_indents_unless_it_is_cut(make):
    table = [(f"  def number_{index} (x):\n    return x  \n", index % 2) for index in range(70)]
    table += [(text.replace("\n    ", " "), label) for text, label in table]
    task = make(table, rows(60, start=500))
    for example in load_splits(task, 0)["test"]:
        assert example.text.endswith(" (x):\n    return x")
        assert example.prompt == f"Say: {example.text} :"
    plain = task.model_copy(update={"source": task.source.model_copy(update={"collapse_spaces": True})})
    collapsed, kept = load_splits(plain, 0)["test"], load_splits(task, 0)["test"]
    assert [item.text for item in collapsed] == [" ".join(item.text.split()) for item in kept]
    short = task.model_copy(update={"source": task.source.model_copy(update={"max_words": 3})})
    for example in load_splits(short, 0)["test"]:
        assert example.text.endswith(" (x):")
        assert example.cut


def test_the_seed_fixes_the_splits_and_their_hashes(make):
    task = make(rows(100), rows(60, start=500))
    first, again, other = load_splits(task, 1), load_splits(task, 1), load_splits(task, 2)
    assert splits_sha256(first) == splits_sha256(again)
    assert all(splits_sha256(first)[name] != splits_sha256(other)[name] for name in SIZES)


def test_examples_for_tuning_are_further_ones(make):
    table, others = rows(150), rows(60, start=500)
    without = load_splits(make(table, others), 0)
    asked = load_splits(make(table, others, splits={**SIZES, "tuning": 40}), 0)
    assert {name: asked[name] for name in SIZES} == without
    texts = {example.text for examples in asked.values() for example in examples}
    assert len(texts) == sum(SIZES.values()) + 40 == sum(map(len, asked.values()))
    with pytest.raises(TaskError, match=r"150 different usable texts.*\+ tuning 100 need 160"):
        load_splits(make(table, others, splits={**SIZES, "tuning": 100}), 0)


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


FROZEN = {
    "calibration": "5ba34b4ecd79f63492ce39caffc9e9552f035ca7fcb7370edb67afded2346b89",
    "selection": "1dc2317d654194462b59b29e4225da84c81338974b3c3c4b70e61f05324e4c76",
    "test": "43231b8ebd9ad751f41a926d3c7c6a7fdd24725ad4dbc6c5c84bc931675684b5",
    "transfer": "3439ebdd6bb81a9d0220345bded24aafed5df48e5d3ec9b7e72d39d997f3974a",
}
"""Splits as they were before a task could have further calibration sources."""


@pytest.fixture
def mixed(make, tmp_path):
    """Function from tables and weights of further sources to a task that calibrates on them too."""

    def build(tables, weights, main=rows(100), transfer=rows(60, start=500), **changes):  # noqa: B008 (never changed)
        sources = []
        for number, (table, weight) in enumerate(zip(tables, weights, strict=True)):
            write(tmp_path / f"more{number}.csv", table)
            sources.append({"path": f"file:{tmp_path / f'more{number}.csv'}", "weight": weight})
        return make(main, transfer, calibration_sources=sources, **changes)

    return build


def numbers(examples):
    return [int(example.text.split()[2]) for example in examples]


def test_without_further_sources_the_splits_are_what_they_were(make):
    assert splits_sha256(load_splits(make(rows(100), rows(60, start=500)), 1)) == FROZEN


def test_calibration_takes_from_its_sources_by_weight_and_leaves_the_other_splits_alone(mixed):
    task = mixed([rows(100, start=1000), rows(100, start=2000)], [2.0, 0.5])
    splits = load_splits(task, 1)
    assert {name: value for name, value in splits_sha256(splits).items() if value == FROZEN[name]}.keys() == {
        "selection",
        "test",
        "transfer",
    }
    calibration = splits["calibration"]
    assert [entry["prompts"] for entry in count_by_source(task, calibration)] == [6, 11, 3]
    assert [number // 1000 for number in numbers(calibration)] == [example.source for example in calibration]
    assert splits_sha256(load_splits(task, 1)) == splits_sha256(splits)
    alone = load_splits(mixed([], []), 1)["calibration"]
    assert [example for example in calibration if example.source == 0] == list(alone[:6])


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([1.0], [10, 10]), ([1e-9], [19, 1]), ([1e9], [1, 19]), ([1.0, 1.0], [7, 7, 6]), ([0.01, 9.0], [2, 1, 17])],
)
def test_shares_add_up_and_every_source_has_one(mixed, weights, counts):
    task = mixed([rows(100, start=1000 * place) for place in range(1, len(weights) + 1)], weights)
    assert [entry["prompts"] for entry in count_by_source(task, load_splits(task, 0)["calibration"])] == counts


def test_every_prefix_and_every_end_of_the_calibration_split_has_the_same_mix(mixed):
    task = mixed(
        [rows(100, start=1000), rows(100, start=2000)],
        [0.7, 0.2],
        main=rows(200),
        splits={**SIZES, "calibration": 100},
    )
    sources = [example.source for example in load_splits(task, 0)["calibration"]]
    for source in range(3):
        share = sources.count(source) / len(sources)
        for length in range(1, len(sources)):
            assert abs(sources[:length].count(source) - share * length) <= 1
            assert abs(sources[-length:].count(source) - share * length) <= 1


def test_a_further_source_gives_no_text_of_another_split(mixed):
    again = [(text.upper(), label) for text, label in rows(100) + rows(60, start=500)]
    splits = load_splits(mixed([again, again + rows(20, start=3000)], [1.0, 1.0]), 0)
    texts = [example.text.casefold() for examples in splits.values() for example in examples]
    assert len(set(texts)) == len(texts) == sum(SIZES.values())


def test_a_text_that_another_source_cuts_shorter_is_the_same_text(mixed):
    task = mixed([rows(60, start=500) + rows(30, start=3000)], [1.0])
    shorter = task.calibration_sources[0].model_copy(update={"max_words": 4})
    used = load_splits(task.model_copy(update={"calibration_sources": (shorter,)}), 0)
    transferred = set(numbers(used["transfer"]))
    assert transferred.isdisjoint(numbers(used["calibration"]))
    everything = task.transfer.model_copy(update={"path": task.source.path, "max_words": 4})
    with pytest.raises(TaskError, match="0 different usable texts, transfer needs 20"):
        load_splits(task.model_copy(update={"transfer": everything}), 0)


def test_further_sources_may_stand_in_for_a_main_one_that_is_too_small(mixed):
    with pytest.raises(
        TaskError, match=r"55 different usable texts, calibration 20 \+ selection 20 \+ test 20 need 60"
    ):
        load_splits(mixed([], [], main=rows(55)), 0)
    splits = load_splits(mixed([rows(100, start=1000)], [1.0], main=rows(55)), 0)
    assert {name: len(examples) for name, examples in splits.items()} == SIZES
    texts = [example.text for examples in splits.values() for example in examples]
    assert len(set(texts)) == len(texts)
    with pytest.raises(TaskError, match=r"45 different usable texts, calibration 10 \+ .* need 50"):
        load_splits(mixed([rows(100, start=1000)], [1.0], main=rows(45)), 0)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (rows(9, start=1000), r"more0\.csv has 9 different usable .* share of the calibration split is 10; lower its"),
        (rows(50), r"more0\.csv has 0 different usable texts that no other split uses"),
        ([("one", 0)], r"more0\.csv: has only the label \['0'\]"),
        ([], r"more0\.csv: the file is empty"),
        ([("one", 7)], r"more0\.csv: line 2: label '7' is not one of"),
    ],
)
def test_a_further_source_that_cannot_give_its_share(mixed, table, problem):
    with pytest.raises(TaskError, match=problem) as caught:
        load_splits(mixed([table], [1.0], main=rows(50)), 0)
    assert "\n" not in str(caught.value)


def test_a_further_source_that_is_not_there(mixed, tmp_path):
    task = mixed([rows(20, start=1000)], [1.0])
    (tmp_path / "more0.csv").unlink()
    with pytest.raises(TaskError, match=r"more0\.csv: file not found"):
        load_splits(task, 0)

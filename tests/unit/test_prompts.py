"""Prompts: templates, columns, worked examples, chats, what is cut, and how labels are read."""

import json

import pytest
from pydantic import ValidationError

from sieve_edge.errors import TaskError
from sieve_edge.protocols import Chat
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import cut_fractions, load_splits
from sieve_edge.task.prompts import write_chat
from sieve_edge.task_config import Task

SIZES = {"calibration": 20, "selection": 20, "test": 20, "transfer": 20}
CHATML = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def make(tmp_path):
    def build(**changes):
        rows = [
            {"passage": f"passage {index} has some words", "q": f"what is {index}", "answer": f"A. number {index}"}
            for index in range(60)
        ]
        for name, first in (("main", "passage"), ("transfer", "excerpt")):
            lines = [json.dumps({**row, "passage": row["passage"].replace("passage", first)}) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        source = {"text": "passage", "label": "answer", "columns": {"question": "q"}, **changes.pop("source", {})}
        tree = {
            "name": "toy",
            "description": "A toy.",
            "source": {"path": f"file:{tmp_path / 'main.jsonl'}", **source},
            "transfer": {"path": f"file:{tmp_path / 'transfer.jsonl'}", **source},
            "prompt": "{{ text }}\nQ: {{ question }}?\nA:",
            "metric": "exact_match",
            "max_new_tokens": 4,
            "splits": SIZES,
            **changes,
        }
        return Task.model_validate({name: value for name, value in tree.items() if value is not None})

    return build


def test_a_prompt_takes_its_columns_and_is_no_template_of_its_own(make):
    example = load_splits(make(), 0)["test"][0]
    number = example.text.split()[1]
    assert example.prompt == f"{example.text}\nQ: what is {number}?\nA:"
    assert example.references == (f"A. number {number}",)
    assert example.answer == f" A. number {number}"


def test_only_the_text_is_cut_and_that_is_counted(make):
    splits = load_splits(make(source={"max_words": 3}), 0)
    example = splits["selection"][0]
    assert example.text.split() == ["passage", example.text.split()[1], "has"]
    assert f"what is {example.text.split()[1]}?" in example.prompt
    assert cut_fractions(splits) == dict.fromkeys(SIZES, 1.0)
    assert cut_fractions(load_splits(make(), 0))["test"] == 0.0


def test_worked_examples_come_from_the_calibration_split_and_leave_it(make):
    plain, shown = load_splits(make(), 0), load_splits(make(shots=2), 0)
    first, second = plain["calibration"][:2]
    expected = f"{first.prompt}{first.answer}\n\n{second.prompt}{second.answer}\n\n"
    assert shown["test"][0].prompt == expected + plain["test"][0].prompt
    assert len(shown["calibration"]) == SIZES["calibration"] - 2
    assert {item.text for item in shown["calibration"]}.isdisjoint({first.text, second.text})
    assert Examiner(make(shots=2)).facts(shown["test"][0])["shots"] == expected, "for who asks the artifact"
    assert "shots" not in Examiner(make()).facts(plain["test"][0])


def test_labels_are_read_by_pattern_and_renamed(make):
    changes = {"metric": "balanced_accuracy", "max_new_tokens": 1}
    labels = {"labels": {"odd": " odd", "even": " even"}}
    values = {str(index): "odd" if index % 2 else "even" for index in range(58)}
    task = make(
        **changes, **labels, source={"label_pattern": r"^A\. number (\d+)", "label_values": values}, splits=SIZES
    )
    with pytest.raises(TaskError, match="58 different usable texts"):
        load_splits(task, 0)
    task = task.model_copy(update={"splits": task.splits.model_copy(update={"calibration": 18})})
    examples = load_splits(task, 0)["test"]
    assert all(example.label == 1 - int(example.text.split()[1]) % 2 for example in examples)


def test_rows_are_left_out_by_value(make):
    task = make(source={"where_not": {"q": "what is 7"}}, splits={**SIZES, "calibration": 19})
    texts = [item.text for items in load_splits(task, 0).values() for item in items]
    assert not any(text.startswith("passage 7 ") for text in texts)


def test_several_references_are_a_json_list(make, tmp_path):
    rows = [{"passage": f"p {index}", "q": "q", "answer": ["Paris", f"city {index}"]} for index in range(60)]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = make()
    source = task.source.model_copy(update={"path": f"file:{tmp_path / 'lists.jsonl'}"})
    example = load_splits(task.model_copy(update={"source": source}), 0)["test"][0]
    assert example.references == ("Paris", f"city {example.text.split()[1]}")
    rows = [{"passage": f"p {index}", "q": "q", "answer": {"text": ["a", "b"], "start": [1, 2]}} for index in range(60)]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    example = load_splits(task.model_copy(update={"source": source}), 0)["test"][0]
    assert example.references == ("a", "b"), "as SQuAD has them"
    for answer, expected in (([7, 8], ("7", "8")), ({"text": [], "start": []}, None)):
        rows = [{"passage": f"p {index}", "q": "q", "answer": answer} for index in range(60)]
        (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        changed = task.model_copy(update={"source": source})
        if expected:
            assert load_splits(changed, 0)["test"][0].references == expected
            continue
        with pytest.raises(
            TaskError, match="column answer holds no reference answer; leave such rows out by where_not"
        ):
            load_splits(changed, 0)


def test_files_by_pattern(make, tmp_path):
    task = make(splits={**SIZES, "calibration": 30})
    more = [{"passage": f"other {index}", "q": "q", "answer": "a"} for index in range(10)]
    (tmp_path / "main2.jsonl").write_text("\n".join(map(json.dumps, more)), encoding="utf-8")
    both = task.source.model_copy(update={"path": f"file:{tmp_path}/main*.jsonl"})
    none = task.source.model_copy(update={"path": f"file:{tmp_path}/nothing*.jsonl"})
    splits = load_splits(task.model_copy(update={"source": both}), 0)
    assert sum(item.text.startswith("other") for items in splits.values() for item in items) == 10
    with pytest.raises(TaskError, match="no file fits"):
        load_splits(task.model_copy(update={"source": none}), 0)


def test_a_chat_is_written_by_the_models_template(make):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "{{ text }} {{ question }}?"}]
    task = make(prompt=None, messages=messages, shots=1)
    example = load_splits(task, 0, Chat(CHATML, "<s>", adds_start=True))["test"][0]
    assert example.prompt.startswith("<|system|>Be short.\n<|user|>passage")
    assert example.prompt.endswith(f"{example.text} what is {example.text.split()[1]}?\n<|assistant|>")
    assert example.prompt.count("<|assistant|>A. number") == 1
    assert [message["role"] for message in example.messages] == ["system", "user", "assistant", "user"]
    assert Examiner(task).facts(example)["shots"] == list(example.messages[1:3])
    kept = load_splits(task, 0, Chat(CHATML, "<s>", adds_start=False))["test"][0]
    assert kept.prompt == "<s>" + example.prompt


def test_chats_end_their_messages_and_may_mark_what_is_generated():
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert write_chat(messages, Chat(template, end="</s>")) == "a</s>b</s>"


def test_a_task_of_someone_else_runs_nothing(make):
    task = make(prompt="{{ text }}{{ cycler.__init__.__globals__.os.getpid() }}")
    with pytest.raises(TaskError, match="the task's template cannot be filled"):
        load_splits(task, 0)


def test_a_template_that_refuses_is_named():
    with pytest.raises(TaskError, match="no systems here"):
        write_chat([{"role": "system", "content": "x"}], Chat("{{ raise_exception('no systems here') }}"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": "{{ text"}, "prompt: not a Jinja template"),
        ({"prompt": "{{ text }} {{ answer }}"}, "source.columns: lacks ['answer'], which the prompt asks for"),
        ({"prompt": "{{ question }}"}, "prompt: contains no {{ text }}"),
        ({"messages": [{"role": "user", "content": "{{ text }}"}]}, "give either a prompt or messages"),
        ({"prompt": None}, "give either a prompt or messages"),
        (
            {"prompt": None, "messages": [{"role": "assistant", "content": "{{ text }}"}]},
            "the last is of the assistant, must be of the user",
        ),
        ({"source": {"columns": {"text": "q"}}}, "'text' names the text column already"),
        ({"source": {"label_pattern": "a"}}, "has no group"),
        ({"shots": 20}, "fewer than the 1 sources and 20 shots it has"),
    ],
)
def test_prompts_that_cannot_be_written_are_refused(make, changes, problem):
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    assert problem in str(caught.value)

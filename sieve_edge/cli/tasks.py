"""``sieve-edge tasks``: what is shipped, and whether a task is ready to be built."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sieve_edge.resolve import load_target, load_task, shipped_tasks

if TYPE_CHECKING:
    from sieve_edge.model.load import LoadedModel
    from sieve_edge.task.examples import Example
    from sieve_edge.task_config import Task

SHOWN, SCORED = 3, 10
_WHY = {
    "no text": "they have no text",
    "duplicate": "their text is there already",
    "in another source": "another split or source has their text",
}


@click.group(invoke_without_command=True)
@click.pass_context
def tasks(ctx: click.Context) -> None:
    """List the tasks that are shipped, or check one."""
    if ctx.invoked_subcommand is not None:
        return
    found = {name: load_task(name) for name in shipped_tasks()}
    for name, task in found.items():
        answers = f"Labels:{','.join(task.labels.values())}" if task.labels else f"Metric: {task.metric}"
        click.echo(f"{name}: {task.description} {answers}.", err=True)
    click.echo(json.dumps({name: task.description for name, task in found.items()}))


@tasks.command()
@click.argument("task", metavar="NAME_OR_YAML")
@click.option("--model", metavar="MODEL", help="Directory, GGUF file, package:NAME/FILE or hf:ORGANISATION/NAME.")
@click.option("--target", default="x86-cpu", show_default=True, help="Target whose default model is used.")
def check(task: str, model: str | None, target: str) -> None:
    """Show how a task's prompts look, their lengths, labels and splits, and ask the dense model ten of them.

    The last line of standard output is one JSON document.
    """
    from sieve_edge.model.load import load_model, read_chat
    from sieve_edge.model.source import find_model
    from sieve_edge.task.examiner import check_lengths
    from sieve_edge.task.examples import Dropped, cut_fractions, load_splits

    the_task, source = load_task(task), find_model(model or load_target(target).model)
    dropped: Dropped = Counter()
    splits = load_splits(the_task, 0, read_chat(source) if the_task.messages else None, dropped)
    for example in splits["calibration"][:SHOWN]:
        click.echo(f"---\n{example.prompt}{example.answer}", err=True)
    loaded = load_model(source, "cpu")
    cut = cut_fractions(splits)
    facts: dict[str, Any] = {
        "task": the_task.name,
        "model": loaded.source.reference,
        "splits": {
            name: _describe(the_task, examples, loaded) | {"cut": cut[name]} for name, examples in splits.items()
        },
        "left_out": [{"from": place, "why": why, "rows": rows} for (place, why), rows in sorted(dropped.items())],
        "answer_tokens": [len(loaded.encode(answer, special=False)) for answer in the_task.labels.values()],
    }
    for name, split in facts["splits"].items():
        click.echo(f"{name}: {json.dumps(split)}", err=True)
    for left_out in facts["left_out"]:
        click.echo(f"{left_out['from']}: {left_out['rows']} rows left out, {_WHY[left_out['why']]}", err=True)
    # After the lengths, which show what is too long.
    check_lengths(the_task, splits, loaded.backend, loaded.positions)
    said, score = _ten_answers(the_task, splits["selection"][:SCORED], loaded)
    for example, answer in zip(splits["selection"], said, strict=False):
        click.echo(f"the dense model says '{answer}', right is '{example.answer.strip()}'", err=True)
    click.echo(f"mean worth of these answers, before any correction: {score:.2f}", err=True)
    click.echo(json.dumps(facts | {"score_of_ten": score}))


def _describe(task: "Task", examples: "Sequence[Example]", loaded: "LoadedModel") -> dict[str, Any]:
    lengths = sorted(len(loaded.encode(example.prompt)) for example in examples)
    answers = Counter(example.answer.strip() for example in examples).most_common()
    found = {"labels": dict(sorted(answers))} if task.labels else {"most_frequent_answers": dict(answers[:SHOWN])}
    return {
        "examples": len(examples),
        **found,
        "prompt_tokens": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
    }


def _ten_answers(task: "Task", examples: "Sequence[Example]", loaded: "LoadedModel") -> tuple[list[str], float]:
    """Ask the dense model; without a judge, which costs money."""
    from sieve_edge.model.flat import TorchTextModel
    from sieve_edge.task.exam import RAW
    from sieve_edge.task.examiner import Examiner

    exam = Examiner(task).exam(examples, loaded.backend, loaded.ends)
    answers = exam.take(TorchTextModel(loaded.model, "cpu"), 1024)
    worth_N = exam.grade(answers, RAW).credits_N
    labels = [answer.strip() for answer in task.labels.values()]
    said = answers if task.writes else [labels[max(range(len(row)), key=row.__getitem__)] for row in answers]
    return said, float(worth_N.mean())

"""``sieve-edge tasks``: what is shipped, and whether a task is ready to be built."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sieve_edge.resolve import load_target, load_task, shipped_tasks

if TYPE_CHECKING:
    from sieve_edge.model.load import LoadedModel
    from sieve_edge.task.examples import Example
    from sieve_edge.task_config import Task

SHOWN, SCORED = 3, 10


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
    from sieve_edge.task.examples import cut_fractions, load_splits

    the_task, source = load_task(task), find_model(model or load_target(target).model)
    splits = load_splits(the_task, 0, read_chat(source) if the_task.messages else None)
    for example in splits["calibration"][:SHOWN]:
        click.echo(f"---\n{example.prompt}{example.answer}", err=True)
    loaded = load_model(source, "cpu")
    check_lengths(the_task, splits, loaded.backend, loaded.positions)
    said, score = _ten_answers(the_task, splits["selection"][:SCORED], loaded)
    cut = cut_fractions(splits)
    facts: dict[str, Any] = {
        "task": the_task.name,
        "model": loaded.source.reference,
        "splits": {
            name: _describe(the_task, examples, loaded) | {"cut": cut[name]} for name, examples in splits.items()
        },
        "shared_texts": _shared(splits),
        "answer_tokens": [len(loaded.encode(answer, special=False)) for answer in the_task.labels.values()],
        "score_of_ten": score,
    }
    for name, split in facts["splits"].items():
        click.echo(f"{name}: {json.dumps(split)}", err=True)
    for example, answer in zip(splits["selection"], said, strict=False):
        click.echo(f"the dense model says '{answer}', right is '{example.answer.strip()}'", err=True)
    click.echo(f"mean worth of these answers, before any correction: {score:.2f}", err=True)
    click.echo(json.dumps(facts))


def _describe(task: "Task", examples: "Sequence[Example]", loaded: "LoadedModel") -> dict[str, Any]:
    lengths = sorted(len(loaded.encode(example.prompt)) for example in examples)
    answers = Counter(example.answer.strip() for example in examples).most_common()
    found = {"labels": dict(sorted(answers))} if task.labels else {"most_frequent_answers": dict(answers[:SHOWN])}
    return {
        "examples": len(examples),
        **found,
        "prompt_tokens": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
    }


def _shared(splits: "Mapping[str, Sequence[Example]]") -> int:
    """Count the texts that more than one split has; none, unless the splitting is wrong."""
    seen = Counter(key for examples in splits.values() for key in {key for item in examples for key in item.keys})
    return sum(count > 1 for count in seen.values())


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

"""``sieve-edge targets`` and ``sieve-edge tasks``: what is shipped, and whether a task is ready to be built."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sieve_edge.resolve import load_target, load_task, shipped_targets, shipped_tasks

if TYPE_CHECKING:
    from sieve_edge.config import Task
    from sieve_edge.model.load import LoadedModel
    from sieve_edge.task.examples import Example

SHOWN, SCORED = 3, 10


@click.command()
def targets() -> None:
    """List the targets that are shipped."""
    found = {name: load_target(name) for name in shipped_targets()}
    for name, target in found.items():
        click.echo(f"{name}: {target.description} Default: {target.model}, {target.task}.", err=True)
    click.echo(json.dumps({name: target.description for name, target in found.items()}))


@click.group(invoke_without_command=True)
@click.pass_context
def tasks(ctx: click.Context) -> None:
    """List the tasks that are shipped, or check one."""
    if ctx.invoked_subcommand is not None:
        return
    found = {name: load_task(name) for name in shipped_tasks()}
    for name, task in found.items():
        click.echo(f"{name}: {task.description} Labels:{','.join(task.labels.values())}.", err=True)
    click.echo(json.dumps({name: task.description for name, task in found.items()}))


@tasks.command()
@click.argument("task", metavar="NAME_OR_YAML")
@click.option("--model", metavar="MODEL", help="Directory, GGUF file, package:NAME/FILE or hf:ORGANISATION/NAME.")
@click.option("--target", default="x86-cpu", show_default=True, help="Target whose default model is used.")
def check(task: str, model: str | None, target: str) -> None:
    """Show how a task's prompts look, their lengths, labels and splits, and ask the dense model ten of them.

    The last line of standard output is one JSON document.
    """
    from sieve_edge.model.load import load_model
    from sieve_edge.model.source import find_model
    from sieve_edge.task.examples import load_splits

    the_task = load_task(task)
    splits = load_splits(the_task, 0)
    for example in splits["calibration"][:SHOWN]:
        click.echo(f"---\n{example.prompt}{list(the_task.labels.values())[example.label]}", err=True)
    loaded = load_model(find_model(model or load_target(target).model), "cpu")
    facts: dict[str, Any] = {
        "task": the_task.name,
        "model": loaded.source.reference,
        "splits": {name: _describe(the_task, examples, loaded) for name, examples in splits.items()},
        "shared_texts": _shared(splits),
        "answer_tokens": [len(loaded.encode(answer, special=False)) for answer in the_task.labels.values()],
        "right_of_ten": _right(the_task, splits["selection"][:SCORED], loaded),
    }
    for name, split in facts["splits"].items():
        click.echo(f"{name}: {json.dumps(split)}", err=True)
    click.echo(f"the dense model answers {facts['right_of_ten']} of {SCORED} right, before any correction", err=True)
    click.echo(json.dumps(facts))


def _describe(task: "Task", examples: "Sequence[Example]", loaded: "LoadedModel") -> dict[str, Any]:
    lengths = sorted(len(loaded.encode(example.prompt)) for example in examples)
    labels, answers = Counter(example.label for example in examples), list(task.labels.values())
    return {
        "examples": len(examples),
        "labels": {answers[label].strip(): labels[label] for label in sorted(labels)},
        "prompt_tokens": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
    }


def _shared(splits: "Mapping[str, Sequence[Example]]") -> int:
    """Count the texts that more than one split has; none, unless the splitting is wrong."""
    seen = Counter(key for examples in splits.values() for key in {key for item in examples for key in item.keys})
    return sum(count > 1 for count in seen.values())


def _right(task: "Task", examples: "Sequence[Example]", loaded: "LoadedModel") -> int:
    from sieve_edge.model.flat import TorchTextModel
    from sieve_edge.task.evaluate import predict
    from sieve_edge.task.examples import label_ids
    from sieve_edge.task.likelihood import label_log_likelihoods

    prompts = [loaded.encode(example.prompt) for example in examples]
    model = TorchTextModel(loaded.model, "cpu")
    scores_NL = label_log_likelihoods(model, prompts, label_ids(task, loaded.encode), 1024)
    return sum(int(label) == example.label for label, example in zip(predict(scores_NL), examples, strict=True))

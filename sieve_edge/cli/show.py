"""``sieve-edge targets`` and ``sieve-edge tasks``: what is shipped."""

import json

import click

from sieve_edge.resolve import load_target, load_task, shipped_targets, shipped_tasks


@click.command()
def targets() -> None:
    """List the targets that are shipped."""
    found = {name: load_target(name) for name in shipped_targets()}
    for name, target in found.items():
        click.echo(f"{name}: {target.description} Default: {target.model}, {target.task}.", err=True)
    click.echo(json.dumps({name: target.description for name, target in found.items()}))


@click.command()
def tasks() -> None:
    """List the tasks that are shipped."""
    found = {name: load_task(name) for name in shipped_tasks()}
    for name, task in found.items():
        click.echo(f"{name}: {task.description} Labels:{','.join(task.labels.values())}.", err=True)
    click.echo(json.dumps({name: task.description for name, task in found.items()}))

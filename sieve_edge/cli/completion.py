"""What a shell completes: names of targets, tasks and settings, and ``sieve-edge completion`` to turn it on."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from sieve_edge.resolve import recipe_fields, shipped_targets, shipped_tasks

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
SHELLS = ("bash", "zsh", "fish")


@click.command(epilog="\b\nExamples:\n  sieve-edge completion bash >> ~/.bashrc\n  sieve-edge completion fish | source")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, targets, tasks and settings."""
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(script(root, {}, "sieve-edge", "_SIEVE_EDGE_COMPLETE").source())


def _beginning(names: Iterable[str], begun: str) -> list[CompletionItem]:
    found = [CompletionItem(name) for name in names if name.startswith(begun)]
    # Whatever is no shipped name is a file; the shell knows those.
    return found or [CompletionItem(begun, type="file")]


def complete_targets(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a target.

    Args:
        begun: What was typed.

    Returns:
        Shipped names, else files.
    """
    return _beginning(shipped_targets(), begun)


def complete_tasks(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a task.

    Args:
        begun: What was typed.

    Returns:
        Shipped names, else files.
    """
    return _beginning(shipped_tasks(), begun)


def complete_settings(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a setting's key.

    Args:
        begun: What was typed.

    Returns:
        Keys with their descriptions.
    """
    found = recipe_fields()
    return [CompletionItem(f"{field.key}=", help=field.description) for field in found if field.key.startswith(begun)]

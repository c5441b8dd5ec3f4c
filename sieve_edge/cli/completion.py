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


def _shipped(names: Callable[[], Iterable[str]]) -> Complete:
    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(begun)]
        # Whatever is no shipped name is a file; the shell knows those.
        return found or [CompletionItem(begun, type="file")]

    return complete


complete_targets = _shipped(shipped_targets)
complete_tasks = _shipped(shipped_tasks)


def complete_settings(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a setting's key.

    Args:
        begun: What was typed.

    Returns:
        Keys with their descriptions.
    """
    found = recipe_fields()
    return [CompletionItem(f"{field.key}=", help=field.description) for field in found if field.key.startswith(begun)]

"""``sieve-edge settings``: everything that ``--set`` takes."""

import json
import textwrap

import click

from sieve_edge.resolve import recipe_fields

_WIDTH = 100


@click.command(epilog="\b\nExamples:\n  sieve-edge settings\n  sieve-edge settings search.guided")
@click.argument("prefix", default="")
def settings(prefix: str) -> None:
    """Show what --set takes: every key that begins with PREFIX, its default and what it means.

    The last line of standard output is one JSON document: key -> default.
    """
    found = [field for field in recipe_fields() if field.key.startswith(prefix)]
    if not found:
        raise click.BadParameter(
            f"no setting begins with '{prefix}'; sieve-edge settings lists all", param_hint="PREFIX"
        )
    for field in found:
        click.echo(f"{field.key}={field.default}", err=True)
        click.echo(textwrap.indent(textwrap.fill(field.description, _WIDTH - 4), "    "), err=True)
    click.echo(json.dumps({field.key: field.value for field in found}, separators=(",", ":")))

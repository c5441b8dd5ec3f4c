"""``sieve-edge targets``: which devices are shipped, what one says, and a commented file for another one."""

import json
import re
import textwrap
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import click
import yaml
from pydantic.fields import FieldInfo

from sieve_edge.config import Strict, Target
from sieve_edge.errors import ConfigError
from sieve_edge.files import disk_errors
from sieve_edge.resolve import load_target, settings_json, shipped_targets

WIDTH = 118
_EXAMPLES = {
    "ssh": "user@host",
    "port": "22",
    "identity": "~/.ssh/id_ed25519",
    "known_hosts": "~/.ssh/known_hosts",
    "image": "text",
}


@click.group(invoke_without_command=True)
@click.pass_context
def targets(ctx: click.Context) -> None:
    """List the targets that are shipped, show one, or begin a file for another device."""
    if ctx.invoked_subcommand is not None:
        return
    found = {name: load_target(name) for name in shipped_targets()}
    for name, target in found.items():
        click.echo(f"{name}: {target.description} Default: {target.model}, {target.task}.", err=True)
    click.echo(json.dumps({name: target.description for name, target in found.items()}))


@targets.command()
@click.argument("target", metavar="NAME_OR_YAML")
def show(target: str) -> None:
    """Show every field of a target with what it means and its unit.

    The last line of standard output is the target, one JSON document.
    """
    found = load_target(target)
    click.echo("\n".join(_commented(Target, settings_json(found))), err=True)
    click.echo(json.dumps(settings_json(found)))


@targets.command()
@click.argument("name")
@click.option("--like", default="x86-cpu", show_default=True, help="Target to start from.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; default: NAME.yaml.")
def init(name: str, like: str, out: Path | None) -> None:
    """Write a commented file for a device of your own, to be edited and given to --target."""
    file = out or Path(f"{name}.yaml")
    if file.exists():
        raise ConfigError(str(file), ["is there already; choose another --out, or delete it"])
    values = settings_json(load_target(like)) | {
        "name": name,
        "description": "One line that says which device this is.",
    }
    text = "\n".join(_commented(Target, values)) + "\n"
    with disk_errors(file):
        file.write_text(text, encoding="utf-8")
    # Wrong names are found now, not at the first build.
    try:
        load_target(str(file))
    except ConfigError:
        file.unlink()
        raise
    click.echo(f"wrote {file}; then: sieve-edge build --target {file}", err=True)
    click.echo(json.dumps({"target": str(file)}))


def _commented(kind: type[Strict], values: dict[str, Any], indent: str = "") -> list[str]:
    """Write a configuration as YAML: each field under its description, off (``#field``) where it is not set."""
    lines: list[str] = []
    for name, field in kind.model_fields.items():
        lines += textwrap.wrap(
            field.description or "", WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        value, inner = values[name], _inner(field)
        if inner is not None and isinstance(value, dict):
            lines += [f"{indent}{name}:", *_commented(inner, value, indent + "  ")]
            continue
        if value is not None:
            lines.append(f"{indent}{name}: {_scalar(value)}")
        if inner is not None:
            lines += [f"{indent}# In place of the line above:"] if value is not None else []
            lines += [f"{indent}#{name}:", *_switched_off(inner, indent + "  ")]
        elif value is None:
            lines.append(f"{indent}#{name}: {_example(name)}")
    return lines


def _switched_off(kind: type[Strict], indent: str) -> list[str]:
    """Write the fields of a configuration that is not set, each under its description, with its default or an example.

    Once the # before ``ssh`` and the like is gone, they are right.
    """
    values = {name: None if field.is_required() else field.get_default() for name, field in kind.model_fields.items()}
    lines = _commented(kind, values, indent)
    return [re.sub(rf"^{indent}(?=\w)", f"{indent}#", line) for line in lines]


def _inner(field: FieldInfo) -> type[Strict] | None:
    """Find the configuration that a field holds, be it optional."""
    kinds = (
        get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType) else [field.annotation]
    )
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Strict)), None)


def _scalar(value: Any) -> str:
    # YAML ends a scalar with a line that says so.
    return yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("...\n").strip()


def _example(name: str) -> str:
    return _EXAMPLES.get(name, "1000")

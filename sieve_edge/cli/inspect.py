"""``sieve-edge inspect``: what an exported file is."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def inspect(path: Path) -> None:
    """Show what a GGUF file or an exported folder is: runtimes, sizes by part, bits per weight, ranks."""
    from sieve_edge.device.inspect import inspect_path

    facts = inspect_path(path)
    console = Console(stderr=True, markup=False, highlight=False)
    what = f"{facts['name']}: {facts['format']} version {facts['version']} {facts['architecture'] or ''}".rstrip()
    factored = facts["factored_version"]
    console.print(what if factored is None else f"{what}, factored weights version {factored}")
    console.print(f"loads in: {', '.join(facts['loads_in'])}")
    sizes = Table("part", "MiB", "share")
    whole = sum(facts["parts"].values())
    for part, mib in facts["parts"].items():
        sizes.add_row(part, f"{mib:.1f}", f"{mib / whole:.0%}")
    sizes.add_row("file", f"{facts['file_mib']:.1f}", "")
    console.print(sizes)
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["types"].items())
    console.print(f"{facts['params']:,} parameters, {facts['bits_per_weight']:.2f} bits each; tensors: {kinds}")
    if facts["ranks"]:
        ranks = Table("factored matrix", "rank")
        for name, rank in facts["ranks"].items():
            ranks.add_row(name, str(rank))
        console.print(ranks)
    click.echo(json.dumps(facts, separators=(",", ":")))

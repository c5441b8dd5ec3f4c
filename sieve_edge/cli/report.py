"""``sieve-edge report`` and ``sieve-edge card``: what finished builds are worth, for people, scripts and the hub."""

import json
from pathlib import Path

import click

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with the results instead.")
@click.option("--markdown", is_flag=True, help="Print Markdown instead, for example for a pull request.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the page to this HTML file, for people."
)
def report(runs: tuple[Path, ...], as_json: bool, markdown: bool, out: Path | None) -> None:
    """Show what finished builds are worth: one, or several side by side.

    RUN is the folder of a build, such as runs/MODEL-TASK-TARGET. The artifacts are read, nothing is measured again.
    """
    from sieve_edge.report.compare import report_markdown, report_page
    from sieve_edge.report.page import write_page
    from sieve_edge.report.record import RunRecord

    if as_json and markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    records = [RunRecord.read(run) for run in runs]
    if out is not None:
        write_page(report_page(records), out)
        click.echo(f"page: {out}", err=True)
    if as_json:
        documents = [{"run": str(record.root), **record.result} for record in records]
        click.echo(json.dumps({"runs": documents}, separators=(",", ":")))
        return
    text = report_markdown(records)
    if markdown:
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(highlight=False).print(Markdown(text))


@click.command()
@click.argument("run", type=_FOLDER)
@click.option(
    "--base-model",
    metavar="ORGANISATION/NAME",
    help="Model on the hub that was pruned, where its files do not name it.",
)
def card(run: Path, base_model: str | None) -> None:
    """Write a Hugging Face model card next to the artifact of a build.

    RUN is the folder of a build; the card is RUN/export/pruned/README.md. The last line of standard output is one JSON
    document.
    """
    from sieve_edge.report.card import write_card
    from sieve_edge.report.record import RunRecord

    file, facts = write_card(RunRecord.read(run), base_model)
    if facts["license"] is None:
        click.echo("note: the source model's files name no licence; add it to the card before you publish it", err=True)
    if facts["base_model"] is None:
        click.echo("note: the source model's files name no model on the hub; --base-model adds it", err=True)
    click.echo(json.dumps({"card": str(file), **facts}, separators=(",", ":")))

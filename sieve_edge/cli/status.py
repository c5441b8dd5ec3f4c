"""How a build is watched: ``--quiet`` and ``--json-progress``, and ``sieve-edge status`` from another shell."""

import functools
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import psutil

from sieve_edge import STAGES
from sieve_edge.artifacts import MANIFEST
from sieve_edge.errors import ArtifactError
from sieve_edge.files import read_json
from sieve_edge.progress import STATUS
from sieve_edge.progress_views import told

_JSON = "sieve_edge.json_progress"
_SAME_PROCESS_SECONDS = 1.0


def shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--quiet`` and ``--json-progress``; it gets ``show``.

    Args:
        function: The command's function.

    Returns:
        The same, with the options.
    """

    @functools.wraps(function)
    def command(*given: Any, quiet: bool, json_progress: bool, **options: Any) -> Any:
        if quiet and json_progress:
            raise click.UsageError("--quiet and --json-progress exclude each other")
        click.get_current_context().meta[_JSON] = json_progress
        show = "quiet" if quiet else "json" if json_progress else "auto"
        return function(*given, show=show, **options)

    as_json = "Show progress, warnings and errors on standard error as JSON documents, one a line, for programs."
    quiet_option = click.option("--quiet", is_flag=True, help="Show warnings and errors only.")
    return quiet_option(click.option("--json-progress", is_flag=True, help=as_json)(command))


def tell_error(ctx: click.Context, message: str, kind: str = "error") -> None:
    """Show why a command ends early, in the form that was asked for.

    Args:
        ctx: Click's context.
        message: One line.
        kind: ``"error"`` or ``"interrupted"``.
    """
    as_json = json.dumps({"event": kind, "text": message}, separators=(",", ":"))
    click.echo(as_json if ctx.meta.get(_JSON) else f"{kind}: {message}", err=True)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def status(run: Path) -> None:
    """Show how far a build is, from another shell, or why it stopped.

    RUN is the folder of a build, such as runs/MODEL-TASK-TARGET. The last line of standard output is one JSON document.
    """
    if not (run / STATUS).is_file():
        raise ArtifactError(
            f"{run}: no build has begun here, it has no {STATUS}; run sieve-edge build, or name its folder"
        )
    facts = _facts(run)
    click.echo("\n".join(_lines(run, facts)), err=True)
    click.echo(json.dumps(facts, separators=(",", ":")))


def _facts(run: Path) -> dict[str, Any]:
    """Read what the build last said of itself, and whether it is still there to say more."""
    facts: dict[str, Any] = read_json(run / STATUS)
    facts["run"] = str(run)
    facts["silent_seconds"] = round(time.time() - facts.pop("updated"), 1)
    if facts["state"] == "running" and facts["host"] == socket.gethostname() and not _alive(facts):
        facts["state"] = "killed"
    facts["finished_stages"] = {
        stage.verb: read_json(run / stage.verb / MANIFEST)["seconds"]
        for stage in STAGES
        if (run / stage.verb / MANIFEST).is_file()
    }
    return facts


def _alive(facts: Mapping[str, Any]) -> bool:
    try:
        created: float = psutil.Process(facts["process"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return bool(abs(created - facts["process_created"]) < _SAME_PROCESS_SECONDS)


def _lines(run: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    state, now = facts["state"], facts.get("number", 0)
    where = f", stage {now} of {facts['of']}: {facts['stage']}" if now and state != "finished" else ""
    yield f"{run}: {state}{where}"
    for number, stage in enumerate(STAGES, 1):
        yield f"  {stage.verb:<10} {_stage(facts, number, stage.verb)}"
    for task in facts["tasks"] if state == "running" else ():
        yield f"  {told(task)}"
    if "best" in facts:
        best = facts["best"]
        kept, loss = f"{best['kept_linears']:.3f} of the linears", f"loss {best['loss']:.2%}"
        yield f"best plan so far: {best['plan']} keeps {kept}, {loss}"
    if state == "running":
        yield f"process {facts['process']} on {facts['host']}, last sign of life {facts['silent_seconds']:.0f} s ago"
    elif state == "finished":
        yield f"results: sieve-edge report {run}" if (run / "result.json").is_file() else "no result yet"
    else:
        yield f"{facts.get('error', 'the process is gone')}; the same command goes on from there"


def _stage(facts: Mapping[str, Any], number: int, verb: str) -> str:
    seconds = facts["finished_stages"].get(verb)
    reached = facts.get("number", 0)
    if facts["state"] == "running" and number >= reached:
        return "running" if number == reached else "to come" if number <= facts.get("of", 0) else "not asked for"
    return "not done" if seconds is None else f"done, {seconds:.0f} s"

"""``sieve-edge build``, and one command for each stage: the pipeline up to there."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from sieve_edge import STAGES
from sieve_edge.cli.completion import complete_settings, complete_targets, complete_tasks
from sieve_edge.cli.merged import check_merged, write_merged
from sieve_edge.cli.status import shown
from sieve_edge.errors import LimitMissed
from sieve_edge.files import read_json

_OPTIONS = (
    click.option(
        "--target",
        required=True,
        metavar="NAME_OR_YAML",
        shell_complete=complete_targets,
        help="Device: a shipped name (sieve-edge targets) or a YAML file.",
    ),
    click.option(
        "--model",
        metavar="MODEL",
        help="Directory, GGUF file, package:NAME/FILE or hf:ORGANISATION/NAME; default: the target's.",
    ),
    click.option(
        "--task",
        metavar="NAME_OR_YAML",
        shell_complete=complete_tasks,
        help="Task: a shipped name (sieve-edge tasks) or a YAML file; default: the target's.",
    ),
    click.option(
        "--run-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the run; default: runs/MODEL-TASK-TARGET. Artifacts that runs share lie beside it, in shared/.",
    ),
    click.option(
        "--plan",
        type=click.IntRange(min=1),
        help="Fuse this plan of the front (search.front=true) in place of the search's choice.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=complete_settings,
        help="Setting, e.g. --set tolerance=0.02; may be given again. sieve-edge settings lists all.",
    ),
    click.option(
        "--device",
        metavar="DEVICES",
        help="Torch device of every stage but export and validate, e.g. cuda; of several, e.g. cuda:0,cuda:1, "
        "calibrate and learn use all and the others the first. The same as --set device=DEVICES; default: cpu.",
    ),
    click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where the search scores candidates: in this process, or on a Ray cluster. The plan is the same.",
    ),
    click.option("--ray-address", metavar="ADDRESS", help="Ray cluster, e.g. auto; default: one for this run only."),
    click.option("--workers", type=click.IntRange(min=1), help="Ray workers; default: as many as there is room for."),
    click.option("--num-gpus", type=click.FloatRange(min=0), help="GPUs of each Ray worker, e.g. 0.5; default: none."),
)


_EXAMPLES = """\b
Examples:
  sieve-edge build --target x86-cpu
  sieve-edge build --target rpi5 --model path/to/model --task my-task.yaml --set tolerance=0.02
  sieve-edge build --target jetson --require-device --json-progress
"""

_REQUIRE_DEVICE = click.option(
    "--require-device",
    is_flag=True,
    help="Exit with 4 unless it was measured on the target's device itself, see the target's connection.",
)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = shown(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(epilog=_EXAMPLES)
@_with_options
@_REQUIRE_DEVICE
def build(require_device: bool, **options: Any) -> None:
    """Run every stage: model + task + target -> validated artifact and report.

    The artifact is RUN/export/pruned, the report RUN/report.html. A stage whose result is there and current is not run
    again; after an interruption the same command goes on where it stopped. The last line of standard output is the
    result, one JSON document; everything else goes to standard error. Exit code 4 says that a limit was missed.
    """
    from sieve_edge.report import finish

    run, manifests = _run(until=STAGES[-1].verb, **options)
    result = finish(run.root, manifests, _command(options), run.source.facts())
    spent = ", ".join(f"{verb} {seconds:.0f} s" for verb, seconds in result["seconds"].items())
    run.progress.say(f"time: {spent}, together {sum(result['seconds'].values()):.0f} s")
    run.progress.say(f"report: {result['report']}, {result['page']}")
    click.echo(json.dumps(result, separators=(",", ":")))
    _demand(result, run, require_device)


def _demand(result: Mapping[str, Any], run: Any, device: bool) -> None:
    """Say what was not verified, and end in ``LimitMissed`` if a limit was missed."""
    from sieve_edge.device.checks import told

    kept = f"the artifact and its report are kept in {run.root}"
    open_, missed = told(result["checks"], None), told(result["checks"], False)
    if open_:
        run.progress.warn(f"not verified, since target {run.target.name} has no connection to its device: {open_}")
    if missed:
        raise LimitMissed(f"{run.target.name}: {missed}; {kept}")
    if device and result["validated_on"] != "device":
        raise LimitMissed(
            f"{run.target.name}: --require-device, but it was measured on this host only; add a connection to the "
            f"target and run the same command; {kept}"
        )


def stage_commands() -> list[click.Command]:
    """Make one command for each stage.

    Returns:
        Commands named after the stages.
    """
    return [_stage_command(stage.verb, stage.writes) for stage in STAGES]


def _stage_command(verb: str, writes: str) -> click.Command:
    more = "Stages before it run too, unless they are current. The last line of standard output is one JSON document."
    if verb == STAGES[-1].verb:
        more += " Exit code 4 says that a limit was missed."

    @click.command(name=verb, help=f"Run the pipeline up to {verb}: {writes}.\n\n{more}")
    @_with_options
    def command(merged: bool = False, require_device: bool = False, **options: Any) -> None:
        run, manifests = _run(until=verb, merged=merged, **options)
        manifest = manifests[verb]
        summary = {"stage": verb, "folder": str(run.folder(verb)), "key": manifest.key, "metrics": manifest.metrics}
        if merged:
            summary["merged"] = write_merged(run)
        report = read_json(run.folder(verb) / "report.json") if verb == STAGES[-1].verb else None
        if report is not None:
            summary["checks"] = report["checks"]
        click.echo(json.dumps(summary, separators=(",", ":")))
        if report is not None:
            _demand(report, run, require_device)

    if verb == STAGES[-1].verb:
        command = _REQUIRE_DEVICE(command)
    if verb == "export":
        told = "Also write merged/model.gguf, which holds the factors' dense products: no smaller or faster than dense."
        command = click.option("--merged", is_flag=True, help=told)(command)
    return command


@click.command()
@_with_options
def profile(**options: Any) -> None:
    """Measure on the target's device what every matrix costs that the search may choose, and keep it.

    Dense and at each rank, for a prompt and for a decode step apart; search.max_time_per_answer_ms and
    search.max_time_per_token_ms use it. The last line of standard output is the table, one JSON document.
    """
    from sieve_edge.timed import profile as measure

    table = measure(_make_run(**options))
    click.echo(json.dumps(table.to_json(), separators=(",", ":")))


def _run(until: str, **options: Any) -> Any:
    from sieve_edge.pipeline import build as build_stages

    run = _make_run(**options)
    return run, build_stages(run, until)


def _make_run(
    target: str,
    model: str | None,
    task: str | None,
    run_dir: Path | None,
    plan: int | None,
    device: str | None,
    settings: tuple[str, ...],
    show: Any,
    merged: bool = False,
    **compute: Any,
) -> Any:
    from sieve_edge.model.source import find_model
    from sieve_edge.progress import Progress
    from sieve_edge.resolve import check_build, load_recipe, load_target, load_task
    from sieve_edge.run import Run

    the_target = load_target(target)
    if merged:
        check_merged(the_target)
    the_task = load_task(task or the_target.task)
    recipe = load_recipe(_with_device(settings, device))
    the_compute = _compute(recipe.device, **compute)
    check_build(the_target, recipe)
    source = find_model(model or the_target.model)
    root = run_dir or Path("runs") / f"{source.name}-{the_task.name}-{the_target.name}"
    return Run(source, the_task, the_target, recipe, root, Progress(show), plan, the_compute)


def _with_device(settings: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    if device is None:
        return settings
    if any(setting.startswith("device=") for setting in settings):
        raise click.UsageError("--device and --set device= say the same; give one of them")
    return (*settings, f"device={device}")


def _compute(device: str, executor: str, ray_address: str | None, workers: int | None, num_gpus: float | None) -> Any:
    from sieve_edge.compute import Compute

    given = {"--ray-address": ray_address, "--workers": workers, "--num-gpus": num_gpus}
    for name, value in given.items():
        if value is not None and executor != "ray":
            raise click.UsageError(f"{name} needs --executor ray")
    if executor == "ray" and device.startswith("cuda") and not num_gpus:
        raise click.UsageError(f"--executor ray with --device {device} needs --num-gpus, e.g. --num-gpus 1")
    compute = Compute(executor, ray_address, workers, num_gpus or 0.0)
    compute.require()
    return compute


def _command(options: dict[str, Any]) -> str:
    words = ["sieve-edge", "build"]
    for name in ("target", "model", "task", "run_dir", "plan", "device"):
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    for setting in options["settings"]:
        words += ["--set", setting]
    return shlex.join(words)

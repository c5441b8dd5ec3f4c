"""``sieve-edge serve`` and ``sieve-edge evaluate``: a build behind OpenAI's API, and any such server on a task."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sieve_edge.cli.status import shown
from sieve_edge.errors import ArtifactError
from sieve_edge.keys import checked_url, checked_variable

if TYPE_CHECKING:
    from sieve_edge.device.replies import Served
    from sieve_edge.progress_views import Show
    from sieve_edge.task.judge import OpenAIJudge
    from sieve_edge.task_config import Task

CONTEXT_TOKENS = 4096


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", type=click.Choice(["pruned", "dense"]), default="pruned", show_default=True, help="Which one.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; by itself this machine only."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port to listen on.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default: the target's.")
@click.option("--prior/--no-prior", default=True, show_default=True, help="Add the prior that the artifact carries.")
@click.option(
    "--context-tokens",
    type=click.IntRange(min=1),
    default=CONTEXT_TOKENS,
    show_default=True,
    help="Most tokens of a prompt with its answer.",
)
def serve(run: Path, model: str, host: str, port: int, threads: int | None, prior: bool, context_tokens: int) -> None:
    """Serve what a build exported, in its target's runtime, to clients of OpenAI's API.

    RUN is the folder of a build, such as runs/MODEL-TASK-TARGET. Completions, chats where the model has a template,
    log-probabilities, logit_bias, stop strings and streaming are known.
    """
    from sieve_edge.device.serve import open_port, run_server

    with open_port(host, port) as door:
        served = open_served(run, model, threads, context_tokens, prior=prior)
        shown_host = f"[{host}]" if ":" in host else host
        click.echo(f"serving {served.name} at http://{shown_host}:{port}/v1, Ctrl-C ends it", err=True)
        run_server(served, door)


def open_served(run: Path, model: str, threads: int | None, context_tokens: int, *, prior: bool) -> "Served":
    """Open an exported folder of a finished build.

    Args:
        run: Folder of the build.
        model: ``"pruned"`` or ``"dense"``.
        threads: Threads; None for the target's.
        context_tokens: Most tokens of a prompt with its answer.
        prior: Whether the prior is added.

    Returns:
        What is served.

    Raises:
        ArtifactError: If the build has not been validated, whose manifest names the target.
    """
    from sieve_edge.artifacts import MANIFEST, read_manifest
    from sieve_edge.device.completions import LabelPrior, label_prior
    from sieve_edge.device.replies import Served
    from sieve_edge.device.runtimes import Runtime, end_tokens, open_tokenizer
    from sieve_edge.files import read_json
    from sieve_edge.protocols import Chat
    from sieve_edge.validate import FACTS

    if not (run / "validate" / MANIFEST).is_file():
        raise ArtifactError(f"{run}: not a finished build, it has no validate/{MANIFEST}; run sieve-edge build")
    target: dict[str, Any] = read_manifest(run / "validate").settings["target"]
    folder = run / "export" / model
    facts = read_json(run / "export" / "pruned" / FACTS)
    tokenizer = open_tokenizer(folder)
    labels = [tokenizer.encode(answer, add_special_tokens=False).ids for _, answer in facts["labels"]]
    bias = label_prior(labels, facts["prior"][model] if prior else [])
    if bias is None:
        texts = [answer for _, answer in facts["labels"]]
        click.echo(
            f"warning: labels {texts} begin with one token and have different priors, so that the prior cannot be "
            "applied here and scores may differ from validation's; clients must add it to the labels' likelihoods: "
            f"{facts['prior'][model]}",
            err=True,
        )
    held = min(context_tokens, facts["positions"] or context_tokens)
    provider, layers, half = target["execution_provider"], target["gpu_layers"], target["quantization"] == "F16"
    runtime = Runtime(target["runtime"], threads or target["threads"], provider, layers, half)
    # llama.cpp shares the context between the prompt that is answered and the one before it.
    opened = runtime.open(folder, 2 * held)
    ends = end_tokens(tokenizer, facts["ends"])
    chat = None if facts["chat"] is None else Chat(**facts["chat"])
    return Served(f"{run.name}-{model}", opened, tokenizer, ends, bias or LabelPrior((), {}), chat, held)


@click.command()
@click.option("--endpoint", required=True, metavar="URL", help="Server, up to and with /v1.")
@click.option("--task", required=True, metavar="NAME_OR_YAML", help="Task: a shipped name or a YAML file.")
@click.option("--model", metavar="NAME", help="Model that is asked for; default: the first that the server lists.")
@click.option(
    "--split",
    type=click.Choice(["selection", "test", "transfer"]),
    default="test",
    show_default=True,
    help="Which examples.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many; default: all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the splits.")
@click.option("--top", type=click.IntRange(1, 20), default=20, show_default=True, help="Log-probabilities asked for.")
@click.option("--concurrency", type=click.IntRange(min=1), default=4, show_default=True, help="Calls at a time.")
@click.option(
    "--tokenizer",
    "tokenizer_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the served model's tokenizer.json: labels outside the told tokens are asked for by logit_bias.",
)
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the key; default: none is sent.")
@click.option(
    "--verdicts",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of what a judge said, so that nothing is asked twice; default: ~/.cache/sieve-edge/verdicts.sqlite.",
)
@shown
def evaluate(
    endpoint: str,
    task: str,
    model: str | None,
    split: str,
    limit: int | None,
    seed: int,
    top: int,
    concurrency: int,
    tokenizer_folder: Path | None,
    api_key_env: str | None,
    verdicts: Path | None,
    show: "Show",
) -> None:
    """Score any OpenAI-compatible server on a task.

    The last line of standard output is one JSON document.
    """
    from sieve_edge.device.runtimes import open_tokenizer
    from sieve_edge.progress import Progress
    from sieve_edge.resolve import load_task
    from sieve_edge.task.endpoint import Endpoint, evaluate_endpoint
    from sieve_edge.task.examples import load_splits
    from sieve_edge.task.metrics import check_metric

    _check("--endpoint", checked_url, endpoint)
    if api_key_env is not None:
        _check("--api-key-env", checked_variable, api_key_env)
    the_task = load_task(task)
    examples = load_splits(the_task, seed)[split][:limit]
    check_metric(the_task)
    judge = _judge(the_task, verdicts) if the_task.metric == "judge" else None
    if judge:
        judge.check()
    tokenizer = None if tokenizer_folder is None else open_tokenizer(tokenizer_folder)
    server = Endpoint(endpoint, model, api_key_env, concurrency, top, tokenizer)
    with Progress(show).task("ask", len(examples), "prompts") as advance:
        facts = evaluate_endpoint(server, the_task, examples, judge, advance)
    judged = {} if judge is None else {"judge": judge.facts()}
    click.echo(json.dumps({**facts, "task": the_task.name, "split": split, **judged}))


def _check(option: str, check: Callable[[str], str], value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


def _judge(task: "Task", verdicts: Path | None) -> "OpenAIJudge":
    """Make the task's judge, whose ceilings hold for this call alone."""
    from sieve_edge.task.judge import OpenAIJudge
    from sieve_edge.task_config import JudgeSettings

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = verdicts or cache / "sieve-edge" / "verdicts.sqlite"
    return OpenAIJudge(task.judge or JudgeSettings(), kept, f"evaluate {uuid.uuid4()}")

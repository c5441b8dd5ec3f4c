"""The command line: ``sieve-edge``. Maps errors to exit codes, in one place."""

import sys
from typing import Any

import click

from sieve_edge import __version__
from sieve_edge.cli.bundle import bundle
from sieve_edge.cli.completion import completion
from sieve_edge.cli.doctor import doctor
from sieve_edge.cli.inspect import inspect
from sieve_edge.cli.report import card, report
from sieve_edge.cli.serve import evaluate, serve
from sieve_edge.cli.settings import settings
from sieve_edge.cli.stages import build, profile, stage_commands
from sieve_edge.cli.status import status, tell_error
from sieve_edge.cli.targets import targets
from sieve_edge.cli.tasks import tasks
from sieve_edge.errors import EnvironmentMissing, SieveError

INTERRUPTED = 130
BUILDERS = ("accelerate", "gguf", "onnx", "safetensors", "scipy", "torch", "transformers")
"""Packages of the extra ``torch``, which a device need not have."""


_EPILOG = """\b
Examples:
  sieve-edge doctor                      what this machine has, and what it lacks
  sieve-edge build --target x86-cpu      the demo: a validated artifact and its report
  sieve-edge status runs/RUN             how far it is, from another shell
  sieve-edge report runs/RUN             what it is worth

\b
Exit codes:
  0    done; of build and validate: every limit is met
  2    usage
  3    configuration, model, task, data or artifact; one line says what, the value, the limit and the fix
  4    the artifact is there, but a limit is missed
  5    something is not installed; the line gives the command
  130  interrupted; the same command goes on

\b
Files:
  runs/MODEL-TASK-TARGET/   a folder for each stage, report.html, result.json, status.json
  runs/shared/              what runs have in common: statistics, projections, scores, time tables

\b
Environment:
  HF_TOKEN, HF_HOME         used by models and data sets of the Hugging Face hub
  OMP_NUM_THREADS           better left unset: threads are settings of the recipe and of the target
"""


class SieveGroup(click.Group):
    """A group whose commands end in one clear line when a user can fix what is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Args:
            ctx: Click's context.

        Returns:
            What the command returned.

        Raises:
            ModuleNotFoundError: If what is missing is no package of the extra ``torch``: a bug.
        """
        try:
            return super().invoke(ctx)
        except SieveError as error:
            tell_error(ctx, str(error))
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if error.name not in BUILDERS:
                raise
            tell_error(
                ctx,
                f"{error.name} is not installed, and only validate runs without it, on a build whose other stages are "
                "up to date: same target but for its limits, model, task and settings; else run: pip install "
                "'sieve-edge[torch]'",
            )
            ctx.exit(EnvironmentMissing.exit_code)
        except KeyboardInterrupt:
            tell_error(ctx, "finished work is kept, and the same command goes on from there", "interrupted")
            ctx.exit(INTERRUPTED)


@click.group(
    cls=SieveGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Prune a language model to what one task needs, for one device, and prove it there.

    A build is model x task x target. Its stages are commands of their own: calibrate, learn, search, fuse, tune,
    vocabulary, quantize, export, validate. Results go to standard output, one JSON document in the last line;
    everything else goes to standard error.
    """


for command in (
    *(build, *stage_commands(), bundle, card, completion, doctor, evaluate),
    *(inspect, profile, report, serve, settings, status, targets, tasks),
):
    cli.add_command(command)


def main() -> None:
    """Run ``sieve-edge``."""
    cli(prog_name="sieve-edge")
    sys.exit(0)

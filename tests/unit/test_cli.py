"""The command line itself: quick to start, and every command says what it does."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from sieve_edge import __version__
from sieve_edge.cli import cli
from sieve_edge.resolve import load_recipe

HEAVY = ("torch", "transformers", "matplotlib", "onnx", "gguf", "safetensors", "huggingface_hub")


@pytest.mark.parametrize("words", [["--help"], ["report", "--help"], ["card", "--help"], ["status", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom sieve_edge.cli import cli\n"
        f"cli({words}, standalone_mode=False)\nsys.exit(str(sorted({set(HEAVY)} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_report_needs_a_run_and_one_form():
    assert CliRunner().invoke(cli, ["report"]).exit_code == 2
    assert CliRunner().invoke(cli, ["report", "no-such-folder"]).exit_code == 2


def test_every_option_is_explained_and_every_command_says_what_it_does():
    def commands(group, words=()):
        for name, command in group.commands.items():
            yield (*words, name), command
            if isinstance(command, click.Group):
                yield from commands(command, (*words, name))

    for words, command in commands(cli):
        assert command.help, words
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (words, parameter.name)


def test_the_version_is_one_line():
    done = CliRunner().invoke(cli, ["--version"], prog_name="sieve-edge")
    assert done.stdout == f"sieve-edge {__version__}\n"


def test_settings_lists_what_set_takes():
    done = CliRunner().invoke(cli, ["settings"])
    assert done.exit_code == 0
    defaults = json.loads(done.stdout)
    assert defaults["tolerance"] == 0.05
    # Every key can be set to its own default.
    written = tuple(f"{key}={json.dumps(value)}" for key, value in defaults.items())
    assert load_recipe(written) == load_recipe(())
    assert set(json.loads(CliRunner().invoke(cli, ["settings", "tune."]).stdout)) == {
        key for key in defaults if key.startswith("tune.")
    }
    assert CliRunner().invoke(cli, ["settings", "nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sieve-edge bu", {"build", "bundle"}),
        ("sieve-edge build --target x86-g", {"x86-gguf", "x86-gguf-stock"}),
        ("sieve-edge build --task movie", {"movie-sentiment"}),
        ("sieve-edge build --set search.max_size", {"search.max_size_mib="}),
        ("sieve-edge build --json", {"--json-progress"}),
    ],
)
def test_the_shell_completes(typed, offered):
    words = typed.split()
    environment = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1), "_SIEVE_EDGE_COMPLETE": "bash_complete"}
    done = CliRunner().invoke(cli, prog_name="sieve-edge", env=environment)
    assert {line.partition(",")[2] for line in done.output.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_shell_is_given(shell):
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert f"_SIEVE_EDGE_COMPLETE={shell}_complete" in done.output

"""What the command line makes of errors that are none of sieve-edge's own."""

import click
import pytest
from click.testing import CliRunner, Result

from sieve_edge.cli import SieveGroup


def _run(name: str) -> Result:
    @click.group(cls=SieveGroup)
    def cli() -> None:
        """A command line with one command."""

    @cli.command()
    def fails() -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    return CliRunner().invoke(cli, ["fails"])


def test_a_device_without_torch_is_told_in_one_line() -> None:
    result = _run("torch")
    assert result.exit_code == 5
    assert result.stderr.startswith("error: torch is not installed, and only validate runs without it, ")
    assert "pip install 'sieve-edge[torch]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_another_missing_module_is_a_bug() -> None:
    result = _run("no_such_module")
    assert result.exit_code == 1
    assert isinstance(result.exception, ModuleNotFoundError)


@pytest.mark.parametrize("name", ["torch", "transformers", "gguf"])
def test_names_what_is_missing(name: str) -> None:
    assert f"error: {name} is not installed" in _run(name).stderr

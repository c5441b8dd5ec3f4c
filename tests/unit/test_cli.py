"""The command line itself: quick to start, and every command says what it does."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from sieve_edge.cli import cli

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

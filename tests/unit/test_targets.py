"""``sieve-edge targets``: what a target says, and files for new ones."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from sieve_edge.cli import cli
from sieve_edge.config import Connection, Limits, Target, Workload
from sieve_edge.resolve import load_target, settings_json, shipped_targets, time_problems

MODELS = (Target, Limits, Workload, Connection)
UNITS = r"\b(milliseconds|MiB|tokens?|count|number)\b"


@pytest.mark.parametrize("kind", MODELS)
def test_every_field_is_described_with_its_unit(kind):
    for name, field in kind.model_fields.items():
        assert field.description, name
        if re.search(r"\b(int|float)\b", str(field.annotation)):
            assert re.search(UNITS, field.description), f"{name}: {field.description}"


@pytest.mark.parametrize("name", shipped_targets())
def test_show_explains_every_field(name):
    done = CliRunner().invoke(cli, ["targets", "show", name])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == settings_json(load_target(name))
    shown = " ".join(line.strip(" #") for line in done.stderr.splitlines())
    for kind in MODELS:
        for field, facts in kind.model_fields.items():
            assert re.search(rf"^ *#?{field}:", done.stderr, re.MULTILINE), field
            assert f"{facts.description} {field}:" in shown


def test_init_writes_a_file_that_is_a_target(tmp_path):
    file = tmp_path / "mine.yaml"
    done = CliRunner().invoke(cli, ["targets", "init", "my-board", "--like", "rpi5", "--out", str(file)])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"target": str(file)}
    like = settings_json(load_target("rpi5"))
    written = settings_json(load_target(str(file)))
    assert {name for name in like if written[name] != like[name]} == {"name", "description"}
    # What is switched off is right too, once the # before it is gone.
    text = file.read_text()
    assert "#connection:\n  # USER@HOST" in text
    on = re.sub(r"^( *)#(?=\w)", r"\1", text, flags=re.MULTILINE)
    file.write_text(on)
    files = {"identity": "~/.ssh/id_ed25519", "known_hosts": "~/.ssh/known_hosts"}
    assert load_target(str(file)).connection == Connection(ssh="user@host", port=22, **files)
    assert set(yaml.safe_load(on)["limits"]) == set(Limits.model_fields)


def test_init_shows_the_connection_in_place_of_a_local_one(tmp_path):
    file = tmp_path / "mine.yaml"
    CliRunner().invoke(cli, ["targets", "init", "my-board", "--like", "x86-cpu", "--out", str(file)])
    assert load_target(str(file)).connection == "local"
    text = file.read_text().replace("\nconnection: local", "").replace("#connection:", "connection:")
    file.write_text(text.replace("#ssh:", "ssh:").replace("#workdir: sieve-edge", "workdir: elsewhere"))
    assert load_target(str(file)).connection == Connection(ssh="user@host", workdir="elsewhere")


def test_init_overwrites_nothing_and_leaves_nothing_wrong(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    done = CliRunner().invoke(cli, ["targets", "init", "my-board", "--out", str(file)])
    assert done.exit_code == 3
    assert "is there already" in done.stderr
    assert file.read_text() == "mine"
    done = CliRunner().invoke(cli, ["targets", "init", "My Board", "--out", str(tmp_path / "new.yaml")])
    assert done.exit_code == 3
    assert "name: " in done.stderr
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"execution_provider": "TensorrtExecutionProvider", "quantization": "int8"},
            "quantization: int8, must be F32",
        ),
        ({"gpu_layers": 3}, "gpu_layers: 3, must be 0 for format onnx"),
        ({"quantization": "int4"}, "storage: pivoted, must be pair for quantization int4: 4 bits are too few"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, problem):
    fields = settings_json(load_target("x86-cpu"))
    with pytest.raises(ValidationError, match=problem):
        Target(**{**fields, **changes})


def test_jetson_is_a_second_name():
    assert load_target("jetson") == load_target("jetson-orin")
    assert Path(shipped_targets()["jetson"]).is_symlink()


@pytest.mark.parametrize(
    ("name", "changed", "reasons"),
    [
        ("x86-cpu", {}, []),
        ("x86-gguf", {"quantization": "Q4_K_M"}, []),
        ("x86-gguf", {"connection": None}, ["has no connection to it"]),
        ("x86-gguf-stock", {}, []),
        ("jetson", {}, ["llama.cpp on the GPU", "has no connection to it"]),
    ],
)
def test_a_target_without_a_time_table_says_why(name, changed, reasons):
    problems = time_problems(load_target(name).model_copy(update=changed))
    assert len(problems) == len(reasons)
    assert all(reason in problem for reason, problem in zip(reasons, problems, strict=True))

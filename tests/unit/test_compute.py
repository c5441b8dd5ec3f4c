"""Options that say where candidates are scored: what contradicts itself or is not there ends before any work."""

import socket
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from sieve_edge import compute
from sieve_edge.cli import cli
from sieve_edge.compute import Compute
from sieve_edge.errors import ConfigError, EnvironmentMissing
from sieve_edge.resolve import load_recipe
from sieve_edge.run import Run, stage_settings
from sieve_edge.search.ray_executor import import_ray


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "2"], "--workers needs --executor ray"),
        (["--ray-address", "auto"], "--ray-address needs --executor ray"),
        (["--num-gpus", "1"], "--num-gpus needs --executor ray"),
        (["--executor", "ray", "--set", "device=cuda"], "needs --num-gpus"),
        (["--executor", "ray", "--device", "cuda:0,cuda:1"], "--device cuda:0,cuda:1 needs --num-gpus"),
        (["--device", "cuda", "--set", "device=cpu"], "--device and --set device= say the same"),
        (["--executor", "ray", "--workers", "0"], "--workers"),
        (["--executor", "slurm"], "'slurm' is not one of 'local', 'ray'"),
    ],
)
@pytest.mark.parametrize("verb", ["build", "search"])
def test_options_that_contradict_each_other_are_a_usage_error(verb, words, told):
    result = CliRunner().invoke(cli, [verb, "--target", "x86-cpu", *words])
    assert result.exit_code == 2, result.output
    assert told in result.output


def test_without_ray_the_message_installs_it(monkeypatch):
    monkeypatch.setattr(compute, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMissing, match=r"ray is not installed; run: pip install 'sieve-edge\[ray\]'"):
        Compute("ray").require()
    Compute("local").require()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentMissing, match=r"run: pip install 'sieve-edge\[ray\]'"):
        import_ray()


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_named(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        Compute("ray", address).require()
    with pytest.raises(EnvironmentMissing, match=f"--ray-address {address}: .*refused"):
        Compute("ray", address).require()
    with pytest.raises(EnvironmentMissing, match="--ray-address head:port"):
        Compute("ray", "head:port").require()


def test_no_stage_depends_on_it(make_run):
    runs = [make_run(compute) for compute in (Compute(), Compute("ray", "auto", 3, 0.5))]
    for verb in ("calibrate", "search", "fuse", "export", "validate"):
        assert stage_settings(verb, runs[0]) == stage_settings(verb, runs[1])


def test_calibrate_and_learn_alone_depend_on_devices_after_the_first(make_run):
    runs = [replace(make_run(Compute()), recipe=load_recipe((f"device={names}",))) for names in ("cpu", "cpu, cpu")]
    assert [run.recipe.devices for run in runs] == [("cpu",), ("cpu", "cpu")]
    for verb in ("search", "fuse", "export", "validate"):
        assert stage_settings(verb, runs[0]) == stage_settings(verb, runs[1])
    for verb in ("calibrate", "learn"):
        assert stage_settings(verb, runs[0]) != stage_settings(verb, runs[1])
    with pytest.raises(ConfigError, match="device: must be names of torch devices"):
        load_recipe(("device=cuda:0,",))


@pytest.fixture
def make_run(tmp_path):
    from sieve_edge.model.source import ModelSource
    from sieve_edge.progress import Progress
    from sieve_edge.recipe import Recipe
    from sieve_edge.resolve import load_target, load_task

    target = load_target("x86-cpu")
    source = ModelSource("model", "model", "model", None)
    return lambda where: Run(source, load_task(target.task), target, Recipe(), tmp_path, Progress(), None, where)

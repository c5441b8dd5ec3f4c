"""Ray finds the plan that one process finds: with one worker, with two, and with a node lost in the middle."""

import shutil
import signal
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from sieve_edge.artifacts import read_manifest
from sieve_edge.files import read_json, read_jsonl
from tests.command import ENVIRONMENT, command, start

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'sieve-edge[ray]'")

SETTINGS = (
    "calibration_tokens=2000",
    "threads=1",
    "learn.fisher_prompts=64",
    "search.strategy=genetic",
    "search.part=50",
    "search.genetic.population=10",
    "search.genetic.patience=2",
)
QUICK = tuple(word for setting in SETTINGS for word in ("--set", setting))
SECONDS = 120


@pytest.fixture(scope="module")
def ray_folder():
    """Short, since the paths of Ray's sockets are; after the tests nobody may use it any more."""
    with tempfile.TemporaryDirectory(prefix="se-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        assert not processes(folder)


@pytest.fixture(scope="module", autouse=True)
def environment(ray_folder):
    """Set variables of this process and of the commands; Ray's files stay in the folder, and out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:

        def change(**variables):
            for name, value in variables.items():
                patch.setenv(name, value)
                patch.setitem(ENVIRONMENT, name, value)

        for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
            patch.delitem(ENVIRONMENT, name, raising=False)
        change(TMPDIR=str(ray_folder), HOME=str(ray_folder), RAY_USAGE_STATS_ENABLED="0")
        yield change


def processes(folder):
    found = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
    return [line for line in found if any(str(folder) in word for word in line)]


@pytest.fixture(scope="module")
def search(pico, toy_task, toy_target):
    return lambda folder: (
        (
            "search",
            "--target",
            toy_target,
            "--task",
            toy_task,
            "--model",
            pico("llama"),
            *QUICK,
            "--run-dir",
            folder / "run",
        )
    )


@pytest.fixture(scope="module")
def local(search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    done = command(*search(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def fresh(local, tmp_path):
    """A folder with statistics and bank, but without scores."""
    for name in ("calibrate", "learn"):
        for shared in (local / "shared").glob(f"{name}-*"):
            shutil.copytree(shared, tmp_path / "shared" / shared.name)
    return tmp_path


@pytest.fixture(scope="module")
def cluster(environment):
    """Two nodes with one CPU each, and a head that runs no worker, so that either may be killed."""
    environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="tests" * 8)  # before Ray is imported
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def scores(node):
    """Whether a worker on the node has been made: Ray names processes after the call that they are at."""
    (raylet,) = node.all_processes["raylet"]
    titles = [" ".join(each.cmdline()) for each in psutil.Process(raylet.process.pid).children()]
    return any(title.startswith("ray::Worker") and "__init__" not in title for title in titles)


def records(folder):
    found, torn = read_jsonl(folder / "run" / "search" / "history.jsonl")
    assert not torn
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


def same(folder, local):
    assert read_json(folder / "run" / "search" / "plan.json") == read_json(local / "run" / "search" / "plan.json")
    assert records(folder) == records(local)
    refits = [sorted((each / "run" / "search").glob("refit-*")) for each in (folder, local)]
    assert [file.read_bytes() for file in refits[0]] == [file.read_bytes() for file in refits[1]]
    return read_manifest(folder / "run" / "search")


def test_a_ray_of_its_own_with_one_worker(search, fresh, local, ray_folder):
    done = command(*search(fresh), "--executor", "ray", "--workers", "1")
    assert done.returncode == 0, done.stderr
    manifest = same(fresh, local)
    assert {name: manifest.metrics[name] for name in ("executor", "workers", "workers_lost")} == {
        "executor": "ray",
        "workers": 1,
        "workers_lost": 0,
    }
    assert manifest.key == read_manifest(local / "run" / "search").key
    assert manifest.fallbacks == ()
    assert not processes(ray_folder)
    assert not [*ray_folder.glob("sieve-ray-*"), *ray_folder.glob(".ray")]


def test_two_workers_on_a_cluster(search, fresh, local, cluster):
    done = command(*search(fresh), "--executor", "ray", "--ray-address", cluster.address)
    assert done.returncode == 0, done.stderr
    assert same(fresh, local).metrics["workers"] == 2


def test_a_node_that_is_killed_in_the_middle_changes_nothing(search, fresh, local, cluster):
    process = start(*search(fresh), "--executor", "ray", "--ray-address", cluster.address, "--workers", "2")
    deadline = time.monotonic() + SECONDS
    while not any(file.stat().st_size for file in fresh.glob("run/.*.work/history.jsonl")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    # It stands still meanwhile, so that the search cannot be over before the node is gone.
    process.send_signal(signal.SIGSTOP)
    cluster.remove_node(next(node for node in cluster.worker_nodes if scores(node)), allow_graceful=False)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert same(fresh, local).metrics["workers_lost"] >= 1
    assert "ray: lost a worker" in errors

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from sieve_edge.config import Connection
from sieve_edge.device import remote
from sieve_edge.device.place import ThisMachine, device_folder, open_place
from sieve_edge.errors import ArtifactError, ConnectionLost, EnvironmentMissing
from sieve_edge.progress import Progress
from sieve_edge.task.examiner import Examiner
from sieve_edge.validate import validate
from tests.tiny_onnx import make_examples, make_target, make_task, write_folder

EXAMPLES = {"test": make_examples(20, 1), "transfer": make_examples(10, 2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    return {"dense": write_folder(root / "dense", work=40), "pruned": write_folder(root / "pruned", noise=0.6)}


def over(connection, folders, cache, run=Path("a-run"), **fields):
    cache.mkdir(exist_ok=True)
    target = make_target().model_copy(update={"connection": connection, **fields})
    return open_place(target, run, folders, cache, Progress())


def endless(folder):
    """A job that nobody waits for."""
    lengths = {"answer_tokens": 1, "decode_tokens": 1, "repeats": 10**7}
    return {"job": "time", "folders": {"dense": str(folder)}, "prompts": {"dense": [1, 2]}, "seed": 0, **lengths}


def measure(place, folders, out):
    out.mkdir(exist_ok=True)
    with place:
        return validate(
            folders["pruned"],
            folders["dense"],
            EXAMPLES,
            Examiner(make_task()),
            make_target(),
            place,
            tolerance=0.05,
            seed=0,
            source_mib=1.0,
            out=out,
            progress=Progress(),
        )


@pytest.fixture(params=["device", "sshd"])
def there(request):
    return request.getfixturevalue(request.param)


def test_what_a_device_measures_is_what_this_machine_measures(there, folders, tmp_path):
    mine = there.home / "mine.txt"
    mine.write_text("mine")
    result = measure(over(there.connection, folders, tmp_path / "cache"), folders, tmp_path / "out")
    here = measure(ThisMachine(make_target()), folders, tmp_path / "here")
    assert result["validated_on"] == "device"
    for name in ("accuracy", "loss", "drift", "max_logit_difference"):
        assert result[name] == here[name]
    assert result["device"]["providers"] == ["CPUExecutionProvider"]
    assert result["device"]["before"]["processor"] == here["device"]["before"]["processor"]
    # Left as it was found.
    assert [file.name for file in there.home.iterdir()] == ["mine.txt"]
    mine.unlink()


def test_folders_that_were_there_stay(device, folders, tmp_path):
    kept = device.home / "sieve-edge" / "other"
    kept.mkdir(parents=True)
    measure(over(device.connection, folders, tmp_path / "cache"), folders, tmp_path / "out")
    assert [path.name for path in (device.home / "sieve-edge").iterdir()] == ["other"]


def test_sending_goes_on_where_the_connection_was_lost(device, folders, tmp_path):
    device.fail("receive", 0.5)
    measure(over(device.connection, folders, tmp_path / "cache"), folders, tmp_path / "out")
    first, second = device.requests("receive")
    sent = [sum(item["bytes"] for item in request["files"]) for request in (first, second)]
    assert sent[1] < 0.7 * sent[0]
    # The file in which it was cut is not sent from its beginning.
    assert any(item["start"] for item in second["files"])


def test_a_job_is_done_again_and_told_once(device, folders, tmp_path):
    device.fail("work", 1.0)
    told = []
    place = over(device.connection, folders, tmp_path / "cache")
    job = {"job": "score", "prompts": [[1, 2], [3]], "answers": [[1], [2]], "batch_tokens": 8}
    with place:
        result = place.run({**job, "folder": str(folders["dense"])}, told.append)
    assert len(result["answers"]) == sum(told) == 2
    assert len(device.requests("work")) == 2


def test_a_connection_that_stays_lost_keeps_what_was_measured(device, folders, tmp_path):
    for name in ("first", "second"):
        device.fail("work", *([1.0] * remote.ATTEMPTS))
        with pytest.raises(ConnectionLost, match="closed by remote host"):
            measure(over(device.connection, folders, tmp_path / "cache"), folders, tmp_path / name)
        assert not (tmp_path / name / "report.json").exists()
    sent = len(device.requests("receive"))
    measure(over(device.connection, folders, tmp_path / "cache"), folders, tmp_path / "first")
    # What is there, whole, is not sent again; then it is removed.
    assert all(not request["files"] for request in device.requests("receive")[1:])
    assert sent >= 2
    assert not list(device.home.iterdir())


def test_a_folder_that_somebody_else_made_is_refused(device, folders, tmp_path):
    place = over(device.connection, folders, tmp_path / "cache")
    mine = device.home / "sieve-edge" / place.run_name / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    fix = r"tiny at me@board: .*a-run.* was not made by sieve-edge; rename it or set connection.workdir"
    with pytest.raises(ArtifactError, match=fix):
        place.__enter__()
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("run", [".", "..", "/", "../my runs/x"])
def test_no_name_of_a_run_reaches_what_is_beside_it(run, device, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = device.home / "sieve-edge" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with over(device.connection, folders, tmp_path / "cache", Path(run)):
        pass
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]
    assert device_folder(Path(run)) == device_folder(Path(run).resolve()) != device_folder(Path(run) / "other")


def test_a_part_of_another_version_is_not_continued(device, folders, tmp_path):
    sent = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    rng = np.random.default_rng(0)
    # More than all the rest, so that the connection is lost in the middle of it; in both folders the same.
    weights = rng.bytes(8 * 2**20)
    for folder in sent.values():
        (folder / "weights").write_bytes(weights)
    device.fail("receive", 0.3, *[0.0] * (remote.ATTEMPTS - 1))
    with pytest.raises(ConnectionLost):
        over(device.connection, sent, tmp_path / "cache").__enter__()
    # The part serves one of two files of that content.
    with over(device.connection, sent, tmp_path / "cache") as place:
        continued = [item for item in device.requests("receive")[-1]["files"] if item["start"]]
        assert [item["name"] for item in continued] == ["dense/weights"]
        there = device.home / "sieve-edge" / place.run_name
        assert (there / "dense" / "weights").read_bytes() == (there / "pruned" / "weights").read_bytes() == weights
    device.fail("receive", 0.3, *[0.0] * (remote.ATTEMPTS - 1))
    with pytest.raises(ConnectionLost):
        over(device.connection, sent, tmp_path / "cache").__enter__()
    (sent["dense"] / "weights").write_bytes(rng.bytes(len(weights)))
    with over(device.connection, {"dense": sent["dense"]}, tmp_path / "cache") as place:
        there = device.home / "sieve-edge" / place.run_name
        assert (there / "dense" / "weights").read_bytes() == (sent["dense"] / "weights").read_bytes()
        assert not (there / ".parts").exists()


def test_a_worker_that_a_lost_connection_left_is_ended(device, folders, tmp_path):
    with over(device.connection, folders, tmp_path / "cache") as place:
        device.fail("work", *["left"] * remote.ATTEMPTS)
        with pytest.raises(ConnectionLost, match="not responding"):
            place.run(endless(folders["dense"]), None)
        # Each attempt ended the one before it.
        assert len(device.workers()) == 1
        job = {"job": "score", "prompts": [[1, 2]], "answers": [[1], [2]], "batch_tokens": 8}
        assert place.run({**job, "folder": str(folders["dense"])}, None)["answers"]
        assert not device.workers()
        device.fail("work", *["left"] * remote.ATTEMPTS)
        with pytest.raises(ConnectionLost):
            place.run(endless(folders["dense"]), None)
    assert not device.workers()
    assert not list(device.home.iterdir())


def test_an_interrupted_validation_leaves_nothing_there(sshd, folders, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), over(sshd.connection, folders, tmp_path / "cache") as place:
        place.run(endless(folders["dense"]), interrupt)
    assert not sshd.workers()
    assert not list(sshd.home.iterdir())


def test_an_interruption_does_not_wait_for_a_lost_connection(device, folders, tmp_path, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    device.fail("remove", 0.0)
    job = {"job": "score", "prompts": [[1, 2]], "answers": [[1], [2]], "batch_tokens": 8}
    with pytest.raises(KeyboardInterrupt), over(device.connection, folders, tmp_path / "cache") as place:
        place.run({**job, "folder": str(folders["dense"])}, interrupt)
    assert len(device.requests("remove")) == 1
    assert f"sieve-edge/{place.run_name} stays there" in capsys.readouterr().err


def test_a_file_of_host_keys_may_have_spaces_in_its_name(sshd, folders, tmp_path):
    known = tmp_path / "my keys" / "100% known"
    known.parent.mkdir()
    shutil.copy(sshd.place / "known", known)
    connection = sshd.connection.model_copy(update={"known_hosts": str(known)})
    assert over(connection, folders, tmp_path / "cache").facts()["python"]


def test_an_unknown_host_key_is_refused(sshd, folders, tmp_path):
    empty = tmp_path / "known"
    empty.write_text("")
    connection = sshd.connection.model_copy(update={"known_hosts": str(empty)})
    with pytest.raises(ConnectionLost, match=r"Host key verification failed.*log in once by hand"):
        over(connection, folders, tmp_path / "cache").facts()
    assert empty.read_text() == ""


def test_a_key_that_the_device_does_not_know_is_refused_at_once(sshd, folders, tmp_path):
    connection = sshd.connection.model_copy(update={"identity": str(sshd.place / "host")})
    with pytest.raises(ConnectionLost, match="Permission denied"):
        over(connection, folders, tmp_path / "cache").facts()


def test_space_is_checked_before_anything_is_sent(device, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_SPARE_BYTES", 2**60)
    with pytest.raises(EnvironmentMissing, match=r"MiB are free and writable in sieve-edge, must be"):
        measure(over(device.connection, folders, tmp_path / "cache"), folders, tmp_path / "out")
    assert not device.requests("receive")


def test_an_old_python_is_named(device, folders, tmp_path):
    old = tmp_path / "old"
    # Its version is all that is old about it.
    old.write_text(f'#!/bin/sh\nshift; exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 2); $1"\n')
    old.write_text(old.read_text().replace('"$1"', "$1"))
    old.chmod(0o755)
    connection = device.connection.model_copy(update={"python": str(old)})
    with pytest.raises(EnvironmentMissing, match=r"must be 3.11 or newer"):
        over(connection, folders, tmp_path / "cache").__enter__()
    missing = device.connection.model_copy(update={"python": "no-such-python"})
    with pytest.raises(EnvironmentMissing, match=r"no-such-python gave no answer"):
        over(missing, folders, tmp_path / "cache").facts()


@pytest.mark.parametrize(
    ("lacking", "problem"),
    [
        (False, "lacks onnxruntime with CUDAExecutionProvider (has "),
        (True, "lacks onnxruntime>=1.23 (has 1.2), and"),
    ],
)
def test_an_accelerator_that_the_devices_runtime_cannot_use_is_refused(
    lacking, problem, device, folders, tmp_path, monkeypatch
):
    if lacking:
        monkeypatch.setattr(remote, "missing", lambda *_: ["onnxruntime>=1.23 (has 1.2)"])
    place = over(device.connection, folders, tmp_path / "cache", execution_provider="CUDAExecutionProvider")
    with pytest.raises(EnvironmentMissing, match=re.escape(problem)) as caught:
        place.__enter__()
    assert "there is none to send with CUDAExecutionProvider; install onnxruntime-gpu" in str(caught.value)
    assert not device.requests("receive")


def test_what_arrives_broken_is_refused(device, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "file_sha256", lambda file: "0" * 64)
    with pytest.raises(ArtifactError, match="what arrived is not what was sent"):
        over(device.connection, folders, tmp_path / "cache").__enter__()
    assert not list(device.home.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"ssh": "-oProxyCommand=touch x"},
        {"ssh": "me@board; touch x"},
        {"ssh": "me@board", "workdir": "a b"},
        {"ssh": "me@board", "workdir": "$(touch x)"},
        {"ssh": "me@board", "workdir": "-x"},
        {"ssh": "me@board", "python": "python3; touch x"},
        {"ssh": "me@board", "port": 0},
        {"ssh": "me@board", "known_hosts": 'a" -o "b'},
    ],
)
def test_nothing_that_a_shell_would_read_is_accepted(fields):
    with pytest.raises(ValidationError):
        Connection(**fields)

import sys

import pytest
from pydantic import ValidationError

from sieve_edge.config import Connection
from sieve_edge.device import remote
from sieve_edge.device.place import ThisMachine, open_place
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


def over(connection, folders, cache):
    cache.mkdir(exist_ok=True)
    target = make_target().model_copy(update={"connection": connection})
    return open_place(target, "a-run", folders, cache, Progress())


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
    ],
)
def test_nothing_that_a_shell_would_read_is_accepted(fields):
    with pytest.raises(ValidationError):
        Connection(**fields)

"""Devices that are reached by ssh: a stand-in for ssh that loses connections when asked to, and a real sshd."""

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sieve_edge.config import Connection
from sieve_edge.device import remote

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
KEYGEN = shutil.which("ssh-keygen")
_STAND_IN = """#!{python}
import json, subprocess, sys, time
from pathlib import Path
place = Path("{place}")
data = sys.stdin.buffer.read()
length, _, rest = data.partition(b"\\n")
request = json.loads(rest[int(length):].partition(b"\\n")[0])
with (place / "log.jsonl").open("a") as log:
    log.write(json.dumps(request) + "\\n")
faults = json.loads((place / "faults.json").read_text())
fault = faults.pop(request["kind"], [])
cut = fault.pop(0) if fault else None
(place / "faults.json").write_text(json.dumps({{**faults, request["kind"]: fault}}))
if cut == "left":
    said = place / "said"
    # A new file: a worker that was left before may still write into the one it has.
    said.unlink(missing_ok=True)
    with said.open("xb") as file:
        left = subprocess.Popen(["sh", "-c", sys.argv[-1]], stdin=subprocess.PIPE, stdout=file, stderr=file,
            cwd=place / "home", start_new_session=True)
    left.stdin.write(data)
    left.stdin.close()
    while not said.stat().st_size:
        time.sleep(0.05)
    sys.stderr.write("Timeout, server not responding.\\n")
    sys.exit(255)
done = subprocess.run(["sh", "-c", sys.argv[-1]], input=data if cut is None else data[: int(len(data) * cut)],
    cwd=place / "home", capture_output=True)
if cut is not None:
    sys.stderr.write("Connection to device closed by remote host.\\n")
    sys.exit(255)
sys.stdout.buffer.write(done.stdout)
sys.stderr.buffer.write(done.stderr)
sys.exit(done.returncode)
"""


@dataclass
class Device:
    """A device that tests can look at."""

    place: Path
    connection: Connection

    @property
    def home(self):
        return self.place / "home"

    def fail(self, kind, *cuts):
        """Lose the connection in the next requests of a kind, after these parts of what is sent.

        In place of a part, "left" loses it once something came back, and what was asked for goes on.
        """
        faults = json.loads((self.place / "faults.json").read_text())
        (self.place / "faults.json").write_text(json.dumps({**faults, kind: list(cuts)}))

    def requests(self, kind):
        log = self.place / "log.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        return [row for row in rows if row["kind"] == kind]

    def workers(self):
        """Processes that work in the device's folders."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                inside = os.readlink(process / "cwd").startswith(f"{self.home}/")
                if inside and b"sieve_edge.device.worker" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found

    def end_workers(self):
        """So that a test that failed leaves nothing behind."""
        for process in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def make_stand_in(place):
    """Put an ``ssh`` into ``place/bin`` that runs commands in ``place/home`` and logs what is asked."""
    (place / "home").mkdir(parents=True)
    (place / "faults.json").write_text("{}")
    script = place / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(_STAND_IN.format(python=sys.executable, place=place))
    script.chmod(0o755)


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A device behind the stand-in."""
    place = tmp_path / "device"
    make_stand_in(place)
    monkeypatch.setenv("PATH", str(place / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.0)
    found = Device(place, Connection(ssh="me@board", python=sys.executable))
    yield found
    found.end_workers()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """A real server on a loopback port; the device is this machine, in a folder of its own."""
    with running_sshd(tmp_path_factory.mktemp("sshd") / "server") as device:
        yield device
        device.end_workers()


@contextlib.contextmanager
def running_sshd(place, more=""):
    """Start a server, with further lines of configuration."""
    if SSHD is None or KEYGEN is None:
        pytest.skip("sshd and ssh-keygen are not installed")
    place.mkdir()
    for name in ("host", "user"):
        subprocess.run([KEYGEN, "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    shutil.copy(place / "user.pub", place / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key = (place / "host.pub").read_text().split(maxsplit=2)[:2]
    (place / "known").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (place / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place / 'host'}\nAuthorizedKeysFile {place / 'authorized'}\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile {place / 'pid'}\n{more}"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-f", place / "config", "-E", place / "log"])
    try:
        _wait(port)
        (place / "home").mkdir()
        yield Device(
            place,
            Connection(
                ssh=f"{getpass.getuser()}@127.0.0.1",
                port=port,
                identity=str(place / "user"),
                known_hosts=str(place / "known"),
                workdir=str(place / "home" / "work"),
                python=sys.executable,
            ),
        )
    finally:
        process.terminate()
        process.wait()


def _wait(port):
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"no sshd on port {port}")

"""A device behind OpenSSH: sends what a worker needs, runs its jobs there, and leaves the device as it was found.

Only fixed words and checked paths stand in the remote command; everything else travels as data on standard input, to
``agent.py``, which is sent along. Host keys are checked as the system's client is set up to.
"""

import json
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from sieve_edge.config import Connection, Target
from sieve_edge.device import agent
from sieve_edge.device.process import LOST, run_worker, runtime_fields
from sieve_edge.device.runner import PYTHON, RUNTIMES, make_site, missing, package_files, requirements, site_files
from sieve_edge.errors import ArtifactError, ConnectionLost, EnvironmentMissing, SieveError
from sieve_edge.files import file_sha256
from sieve_edge.progress import Progress as Shown
from sieve_edge.protocols import Progress

ATTEMPTS = 3
"""Tries of one request over a connection that is lost."""

_PAUSE_SECONDS = 2.0
_SPARE_BYTES = 64 * 2**20
_BOOT = 'import sys;s=sys.stdin.buffer;exec(compile(s.read(int(s.readline())),"agent","exec"),{"__name__":"__main__"})'
_OPTIONS = ("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=15", "ServerAliveInterval=15")
_FINAL = ("host key", "denied")
"""What ssh says when another attempt would end in the same way."""

_SITE, _RUNNER = "site", "runner"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SshDevice:
    """A device that is reached by ``ssh``.

    Attributes:
        target: The device; its connection is one over ssh.
        run_name: Name of the folder on the device, see ``device_folder``.
        folders: What is sent, by the name it has on the device: exported folders.
        cache: Folder here where packages for devices are kept.
        shown: Where progress is shown.
        further: Packages that jobs need besides those of the runtime.
    """

    target: Target
    run_name: str
    folders: Mapping[str, Path]
    cache: Path
    shown: Shown
    further: tuple[str, ...] = ()

    name = "device"
    stand_ins = ()

    def facts(self) -> dict[str, Any]:
        """Say what the device is, and how it is now; JSON-compatible, with its free space and packages."""
        names = [requirement.name for requirement in requirements(self.target.runtime, self.further)]
        return self._ask({"kind": "probe", "packages": [*names, *RUNTIMES[self.target.runtime]]})

    def run(self, job: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        """Do one worker job on the device; again if the connection is lost.

        Args:
            job: The job; folders in it are those that were sent.
            progress: Told of each unit that the worker finishes.

        Returns:
            The worker's result.
        """
        there = {str(folder): name for name, folder in self.folders.items()}
        sent = {**runtime_fields(self.target, True), **job}
        if "folder" in sent:
            sent["folder"] = there[sent["folder"]]
        if "folders" in sent:
            sent["folders"] = {name: there[folder] for name, folder in sent["folders"].items()}
        # Of a job that is done again, the units that were told already are not told twice.
        told, done = 0, 0

        def tell(units: int) -> None:
            nonlocal told, done
            done += units
            if progress and done > told:
                progress(done - told)
                told = done

        def ask() -> dict[str, Any]:
            nonlocal done
            done = 0
            return run_worker(sent, tell, self._ssh, self._head({"kind": "work", "paths": [_RUNNER, _SITE]}))

        return self._insist(ask)

    def __enter__(self) -> Self:
        """Check the device, and send what is not there yet.

        Returns:
            The device.

        Raises:
            EnvironmentMissing: If its Python is too old, packages or the accelerator's runtime cannot be had, or there
                is no space.
        """
        target, found = self.target, self.facts()
        if tuple(found["python_version"]) < PYTHON:
            raise EnvironmentMissing(
                f"{self._where}: {self._connection.python} is {found['python']}, must be {PYTHON[0]}.{PYTHON[1]} or "
                "newer; install one and name it in connection.python"
            )
        files = {f"{_RUNNER}/{name}": file for name, file in package_files().items()}
        for sent, folder in self.folders.items():
            files |= {f"{sent}/{file.name}": file for file in sorted(folder.iterdir()) if file.is_file()}
        lacking = missing(target.runtime, found["packages"], self.further)
        if target.accelerated and target.format == "onnx":
            self._check_provider([each for each in lacking if each.startswith(target.runtime)])
        if lacking:
            self.shown.say(f"  {self._where} lacks {', '.join(lacking)}: sending them")
            python, machine = found["python_version"], found["machine"]
            site = make_site(target.runtime, machine, python, self.cache, self.further, target.accelerated)
            files |= {f"{_SITE}/{name}": file for name, file in site_files(site).items()}
        with ExitStack() as undone:
            undone.push(self.__exit__)
            self._send(files, found["free_bytes"])
            undone.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was sent; after a lost connection it stays, for the next try."""
        if isinstance(error, ConnectionLost):
            return
        if not isinstance(error, KeyboardInterrupt):
            self._ask({"kind": "remove"})
            return
        # Whoever interrupts does not want to wait for a connection that is lost as well.
        try:
            self._ask_once({"kind": "remove"})
        except SieveError as problem:
            self.shown.warn(f"  {problem}; {self._folder} stays there until a build of this run ends")

    def _check_provider(self, lacking: Sequence[str]) -> None:
        """Refuse a device whose onnxruntime cannot use the accelerator: the one that could be sent uses none."""
        provider, has = self.target.execution_provider, self._ask({"kind": "providers"})["providers"]
        if lacking or provider not in has:
            problem = ", ".join(lacking) or f"onnxruntime with {provider} (has {', '.join(has) or 'none'})"
            raise EnvironmentMissing(
                f"{self._where}: {self._connection.python} lacks {problem}, and there is none to send with {provider}; "
                "install onnxruntime-gpu, or the maker's build for the device, there"
            )

    @property
    def _connection(self) -> Connection:
        assert isinstance(self.target.connection, Connection)  # noqa: S101 (open_place chose this class by it)
        return self.target.connection

    @property
    def _where(self) -> str:
        return f"{self.target.name} at {self._connection.ssh}"

    @property
    def _folder(self) -> str:
        return f"{self._connection.workdir}/{self.run_name}"

    @cached_property
    def _ssh(self) -> list[str]:
        asked = self._connection
        if shutil.which("ssh") is None:
            raise EnvironmentMissing(
                "ssh is missing; install the OpenSSH client, on Debian: apt-get install openssh-client"
            )
        words = ["ssh", "-T", *(word for option in _OPTIONS for word in ("-o", option))]
        if asked.port is not None:
            words += ["-p", str(asked.port)]
        if asked.identity is not None:
            words += ["-i", str(Path(asked.identity).expanduser()), "-o", "IdentitiesOnly=yes"]
        if asked.known_hosts is not None:
            # ssh splits the value at spaces, and has a use of its own for %.
            file = str(Path(asked.known_hosts).expanduser()).replace("%", "%%")
            words += ["-o", f'UserKnownHostsFile="{file}"']
        return [*words, "--", asked.ssh, shlex.join([asked.python, "-c", _BOOT])]

    def _head(self, request: Mapping[str, Any]) -> bytes:
        """Put the agent and a request in front of what the request needs."""
        source = Path(agent.__file__).read_bytes()
        asked = {**request, "folder": self._folder}
        return str(len(source)).encode() + b"\n" + source + json.dumps(asked).encode() + b"\n"

    def _send(self, files: Mapping[str, Path], free_bytes: int) -> None:
        hashes = {name: file_sha256(file) for name, file in files.items()}

        def ask() -> None:
            there = self._ask({"kind": "listing", "files": list(files)})
            wanted = []
            for name, file in files.items():
                if there["whole"].get(name) != hashes[name]:
                    size = file.stat().st_size
                    # Only the first of several files of one content continues a part.
                    start = min(there["parts"].pop(hashes[name], 0), size)
                    wanted.append({"name": name, "sha256": hashes[name], "start": start, "bytes": size - start})
            needed = sum(item["bytes"] for item in wanted) + _SPARE_BYTES
            if needed > free_bytes:
                raise EnvironmentMissing(
                    f"{self._where}: {free_bytes / 2**20:.0f} MiB are free and writable in {self._connection.workdir}, "
                    f"must be {needed / 2**20:.0f}; make space or set connection.workdir"
                )
            with self.shown.task("send", len(wanted), "files") as advance:
                self._stream(wanted, files, advance)

        self._insist(ask)

    def _stream(self, wanted: Sequence[Mapping[str, Any]], files: Mapping[str, Path], advance: Progress) -> None:
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(self._ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process:
                assert process.stdin is not None  # noqa: S101 (for the type checker: both are pipes)
                assert process.stdout is not None  # noqa: S101
                # What ended the other side is in its exit code and its last line.
                with suppress(BrokenPipeError):
                    self._write(process.stdin, wanted, files, advance)
                said = process.stdout.read()
            errors.seek(0)
            self._answer(process.returncode, said, errors.read())

    def _write(
        self, pipe: IO[bytes], wanted: Sequence[Mapping[str, Any]], files: Mapping[str, Path], advance: Progress
    ) -> None:
        with pipe:
            pipe.write(self._head({"kind": "receive", "files": list(wanted)}))
            for item in wanted:
                with files[item["name"]].open("rb") as opened:
                    opened.seek(item["start"])
                    shutil.copyfileobj(opened, pipe)
                advance(1)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._insist(lambda: self._ask_once(request))

    def _ask_once(self, request: Mapping[str, Any]) -> dict[str, Any]:
        done = subprocess.run(self._ssh, input=self._head(request), capture_output=True, check=False)
        return self._answer(done.returncode, done.stdout, done.stderr)

    def _answer(self, code: int, said: bytes, errors: bytes) -> dict[str, Any]:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        if code == LOST:
            raise ConnectionLost(self._told(last))
        try:
            answer: dict[str, Any] = json.loads(said)
        except ValueError as error:
            raise EnvironmentMissing(
                f"{self._where}: {self._connection.python} gave no answer (exit {code}: {last}); it must be Python "
                f"{PYTHON[0]}.{PYTHON[1]} or newer, named in connection.python"
            ) from error
        if "error" in answer:
            raise ArtifactError(f"{self._where}: {answer['error']}")
        return answer

    def _told(self, last: str) -> str:
        fix = "check connection.ssh, port and identity, and that the device is on; the same command goes on from there"
        if "host key" in last.lower():
            fix = f"log in once by hand to check and accept its key: ssh {self._connection.ssh}"
        return f"{self._where}: ssh says '{last}'; {fix}"

    def _insist(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again when the connection is lost, unless asking again cannot help."""
        for attempt in range(1, ATTEMPTS):
            try:
                return ask()
            except ConnectionLost as error:
                if any(word in str(error).lower() for word in _FINAL):
                    raise
                self.shown.say(f"  {error}; trying again")
                time.sleep(_PAUSE_SECONDS * attempt)
        return ask()

"""The device's side of a connection: what is sent there as source text and run by its Python, standard library only.

It reads one JSON request, a line, and after it what the request needs, from standard input; it writes one JSON answer,
a line, to standard output. Nothing of a request ever reaches a shell. It stays within Python 3.8, so that an older
Python than the runner needs can still say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

PARTS = ".parts"
CREATED = ".created"
PROC = Path("/proc")
THERMAL = Path("/sys/class/thermal")
CPUS = Path("/sys/devices/system/cpu")
_CHUNK = 2**20
_NAMES = ("model name", "Model", "Hardware")
_OURS = (b"sieve_edge.device.worker", b'"agent","exec"')
"""What the command lines of a worker and of this program contain."""

_ENDINGS, _ENDING_SECONDS = 100, 0.05
_SLOWS_PROCESSOR = ("cpufreq", "cpuidle", "powerclamp", "processor", "thermal-idle", "throttle")
"""What the types of cooling devices contain that slow a processor down; fans cool without that."""


def facts(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Say what this machine is, and how it is now.

    Args:
        packages: Whose versions are wanted; None for one that is not installed.

    Returns:
        JSON-compatible; what the machine does not tell is None or empty.
    """
    frequencies = sorted(CPUS.glob("cpu[0-9]*/cpufreq"))
    return {
        "model": _text(Path("/proc/device-tree/model")) or processor(),
        "processor": processor(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "governors": sorted({text for text in (_text(file / "scaling_governor") for file in frequencies) if text}),
        "clock_mhz": _megahertz(frequencies, "scaling_cur_freq"),
        "max_clock_mhz": _megahertz(frequencies, "scaling_max_freq"),
        "temperature_c": _temperatures(),
        "throttled": _throttled(),
        "memory_mib": _memory("MemTotal"),
        "available_memory_mib": _memory("MemAvailable"),
        "packages": {name: _version(name) for name in packages},
    }


def processor() -> str:
    """Name the processor; boards without a model name give their own.

    Returns:
        Its name, or the kind of machine.
    """
    named = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        named[name.strip()] = value.strip()
    return next((named[name] for name in _NAMES if named.get(name)), platform.processor() or platform.machine())


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Say what the runner needs to know before anything is sent: facts, free space, and versions of packages."""
    folder = Path(request["folder"]).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    found = {
        **facts(tuple(request["packages"])),
        "python_version": list(sys.version_info[:2]),
        "free_bytes": shutil.disk_usage(there).free,
    }
    return found if os.access(there, os.W_OK) else {**found, "free_bytes": 0}


def providers(_: dict[str, Any]) -> dict[str, Any]:
    """Say what this Python's onnxruntime can compute on; nothing if it has none, or one that cannot be imported."""
    code = "import onnxruntime; print('\\n' + ' '.join(onnxruntime.get_available_providers()))"
    quiet = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-Bc", code], stdout=subprocess.PIPE, env=quiet, check=False)
    return {"providers": done.stdout.decode().splitlines()[-1].split() if done.returncode == 0 else []}


def listing(request: dict[str, Any]) -> dict[str, Any]:
    """Say which of the wanted files are there, and how much of others, by their hash."""
    folder = Path(request["folder"])
    if _foreign(folder):
        return {"error": _refusal(folder)}
    _end_former(folder)
    whole = {name: _sha256(folder / name) for name in request["files"] if (folder / name).is_file()}
    return {"whole": whole, "parts": {part.name: part.stat().st_size for part in (folder / PARTS).glob("*")}}


def receive(request: dict[str, Any], stream: BinaryIO) -> dict[str, Any]:
    """Take files from the stream; each is there when all of it came and its hash is right."""
    folder = Path(request["folder"])
    if _foreign(folder):
        return {"error": _refusal(folder)}
    _end_former(folder)
    folder = _create(folder)
    # Where this process is can be seen by the one that takes up what is interrupted now.
    os.chdir(str(folder))
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    for item in request["files"]:
        file = folder / item["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        # By its hash, so that what is left of another version is never continued.
        part = parts / item["sha256"]
        left = item["bytes"]
        with part.open("ab" if item["start"] else "wb") as opened:
            while left:
                chunk = stream.read(min(left, _CHUNK))
                if not chunk:
                    return {"error": "the connection ended in the middle of " + item["name"]}
                opened.write(chunk)
                left -= len(chunk)
        if _sha256(part) != item["sha256"]:
            part.unlink()
            return {"error": item["name"] + ": what arrived is not what was sent"}
        part.replace(file)
    # Parts of versions that nobody wants any more.
    shutil.rmtree(str(parts))
    return {"files": len(request["files"])}


def remove(request: dict[str, Any]) -> dict[str, Any]:
    """Take away what ``receive`` made, the folders above it too if they were made for it and are empty."""
    folder = Path(request["folder"]).absolute()
    if not (folder / CREATED).is_file():
        return {"removed": False}
    _end_former(folder)
    top = Path((folder / CREATED).read_text(encoding="utf-8"))
    shutil.rmtree(str(folder))
    for parent in folder.parents:
        if top not in (parent, *parent.parents) or any(parent.iterdir()):
            break
        parent.rmdir()
    return {"removed": True}


def work(request: dict[str, Any], stream: BinaryIO) -> int:
    """Let the worker do the job that the rest of the stream holds; its streams are this process's own."""
    folder = Path(request["folder"]).absolute()
    # Behind them what probe found packages in.
    paths = [*(str(folder / name) for name in request["paths"]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "sieve_edge.device.worker"]
    job = stream.read()
    _end_former(folder)
    return subprocess.run(command, input=job, cwd=str(folder), env=environment, check=False).returncode


def main() -> int:
    """Answer one request.

    Returns:
        Exit code; that of the worker, if it was asked for.
    """
    stream = sys.stdin.buffer
    request = json.loads(stream.readline())
    kind = request["kind"]
    try:
        if kind == "work":
            return work(request, stream)
        answers = {"probe": probe, "providers": providers, "listing": listing, "remove": remove}
        answer = receive(request, stream) if kind == "receive" else answers[kind](request)
    except OSError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _foreign(folder: Path) -> bool:
    """Say whether somebody else made the folder, so that it is not to be filled, let alone removed."""
    return os.path.lexists(str(folder)) and not (folder / CREATED).is_file()


def _refusal(folder: Path) -> str:
    return f"{folder} is there already and was not made by sieve-edge; rename it or set connection.workdir"


def _create(folder: Path) -> Path:
    """Make the folder, and note in it the topmost one that had to be made."""
    folder = folder.absolute()
    if not (folder / CREATED).is_file():
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True)
        (folder / CREATED).write_text(str(missing[-1]), encoding="utf-8")
    return folder


def _end_former(folder: Path) -> None:
    """End what an earlier request still does in this folder.

    Nothing tells a worker that its connection was lost, and its job is asked for again: two would disturb each other,
    so that one that does not end is an error.
    """
    for _ in range(_ENDINGS):
        former = _at_work(os.path.realpath(str(folder)))
        if not former:
            return
        for process in former:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_ENDING_SECONDS)
    raise OSError(f"processes of an earlier request do not end: {former}; end them there, or restart the device")


def _at_work(folder: str) -> list[int]:
    """List our processes in a folder, this one left out."""
    found = []
    for process in PROC.glob("[0-9]*"):
        # One that is gone, or another user's.
        with suppress(OSError):
            inside = os.readlink(str(process / "cwd")) == folder and int(process.name) != os.getpid()
            if inside and any(word in (process / "cmdline").read_bytes() for word in _OURS):
                found.append(int(process.name))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sha256(file: Path) -> str:
    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        for chunk in iter(lambda: opened.read(_CHUNK), b""):
            hashed.update(chunk)
    return hashed.hexdigest()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _megahertz(folders: list[Path], name: str) -> list[int]:
    return [int(text) // 1000 for text in (_text(folder / name) for folder in folders) if text.isdigit()]


def _temperatures() -> dict[str, float]:
    zones = {}
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        text = _text(zone / "temp")
        if text.lstrip("-").isdigit():
            zones["{} {}".format(zone.name[12:], _text(zone / "type"))] = int(text) / 1000
    return zones


def _throttled() -> dict[str, str]:
    """Gather what tells of throttling: counts of x86 processors, flags of a Raspberry Pi, slowed processors."""
    found = {}
    counts = [_text(file) for file in CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    if counts:
        found["core_throttle_count"] = str(sum(int(text) for text in counts if text.isdigit()))
    for device in sorted(THERMAL.glob("cooling_device*")):
        state, kind = _text(device / "cur_state"), _text(device / "type")
        if state.isdigit() and state != "0" and any(word in kind.lower() for word in _SLOWS_PROCESSOR):
            found[f"{device.name} {kind}"] = state
    tool = shutil.which("vcgencmd")
    if tool:
        done = subprocess.run([tool, "get_throttled"], stdout=subprocess.PIPE, check=False)
        found["vcgencmd"] = done.stdout.decode(errors="replace").strip()
    return found


def _memory(name: str) -> int | None:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) // 1024
    return None


if __name__ == "__main__":
    sys.exit(main())

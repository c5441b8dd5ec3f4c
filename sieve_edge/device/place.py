"""Where a target's artifact is measured: this machine, or a device behind a connection."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from sieve_edge.config import Connection, Target
from sieve_edge.device.agent import facts
from sieve_edge.device.process import run_worker, runtime_fields
from sieve_edge.device.remote import SshDevice
from sieve_edge.device.runner import RUNTIMES
from sieve_edge.files import digest
from sieve_edge.progress import Progress as Shown
from sieve_edge.protocols import Progress


class Place(Protocol):
    """Runs worker jobs; a context, at whose end the place is as it was found."""

    @property
    def name(self) -> str:
        """``"device"``, or ``"host"`` where the target's device is not at hand."""
        ...

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What is used in place of what the target asks for, in words."""
        ...

    def facts(self) -> dict[str, Any]:
        """Say what the machine is, and how it is now; JSON-compatible."""
        ...

    def run(self, job: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        """Do one worker job.

        Args:
            job: The job without runtime, threads, and provider; see ``sieve_edge.device.worker``.
            progress: Told of each unit that the worker finishes.

        Returns:
            The worker's result.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class ThisMachine:
    """This machine, as the device itself or standing in for it, and then without the device's accelerator.

    Attributes:
        target: The device.
    """

    target: Target

    @property
    def name(self) -> str:
        """``"device"`` if the target says that this machine is it, else ``"host"``."""
        return "device" if self.target.connection == "local" else "host"

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Processors in place of accelerators."""
        if self.name == "device" or not self.target.accelerated:
            return ()
        asked = self.target.execution_provider if self.target.format == "onnx" else "llama.cpp on the GPU"
        return (f"measured on this machine's processor in place of {asked}, since the target has no connection",)

    def facts(self) -> dict[str, Any]:
        """Say what this machine is, and how it is now; JSON-compatible."""
        return facts(RUNTIMES[self.target.runtime])

    def run(self, job: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        """Do one worker job in a fresh process.

        Args:
            job: The job.
            progress: Told of each unit that the worker finishes.

        Returns:
            The worker's result.
        """
        return run_worker({**runtime_fields(self.target, self.name == "device"), **job}, progress)

    def __enter__(self) -> Self:
        """Nothing has to be made ready."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was left behind."""


def open_place(
    target: Target,
    run: Path,
    folders: Mapping[str, Path],
    cache: Path,
    shown: Shown,
    further: tuple[str, ...] = (),
) -> Place:
    """Say where a target's artifact is measured.

    Args:
        target: The device.
        run: Folder of the run; a device behind a connection has one for it.
        folders: Exported folders, by the names that they have there.
        cache: Folder here where packages for devices are kept.
        shown: Where progress is shown.
        further: Packages that jobs need besides those of the runtime.

    Returns:
        The place, to be entered.
    """
    if isinstance(target.connection, Connection):
        return SshDevice(target, device_folder(run), folders, cache, shown, further)
    return ThisMachine(target)


def device_folder(run: Path) -> str:
    """Name the folder that a device has for a run: never that of another run, nor one above it.

    Args:
        run: Folder of the run, however it is written.

    Returns:
        A name without separators; the same whenever the run goes on.
    """
    place = run.resolve()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", place.name).strip(".-")
    return f"{readable or 'run'}-{digest(str(place))[:8]}"

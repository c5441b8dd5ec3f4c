"""The dense model once on every device, each with sums of its own; batches are dealt out to them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from torch import Tensor

from sieve_edge.model.load import LoadedModel
from sieve_edge.model.statistics import Moments


@dataclass(frozen=True)
class Replica:
    """The dense model on one device.

    Attributes:
        loaded: The model there.
        device: Torch device.
        moments: Sums of the batches that it ran.
    """

    loaded: LoadedModel
    device: str
    moments: Moments


def replicate(loaded: LoadedModel, devices: Sequence[str], sums: Mapping[str, Tensor]) -> list[Replica]:
    """Put the model and what was summed before on every device.

    Args:
        loaded: The model on the first device, where it is not copied.
        devices: Torch devices.
        sums: What ``replica_sums`` returned for as many devices, or nothing.

    Returns:
        One replica a device.
    """
    replicas = []
    for index, device in enumerate(devices):
        own = loaded if index == 0 else replace(loaded, model=copy.deepcopy(loaded.model).to(device))
        moments, prefix = Moments(), _prefix(index)
        for name, value in sums.items():
            if name.startswith(prefix) and ("/" in name) == bool(prefix):
                # Matrices are summed where the model runs; counts stay with the CPU.
                moments.sums[name.removeprefix(prefix)] = value.to(device) if value.dim() else value
        replicas.append(Replica(own, device, moments))
    return replicas


def replica_sums(replicas: Sequence[Replica]) -> dict[str, Tensor]:
    """List what every replica summed up, to be kept while a pass runs.

    Args:
        replicas: All replicas.

    Returns:
        Name -> sum; names of all but the first replica begin with its number.
    """
    numbered = enumerate(replicas)
    return {_prefix(index) + name: value for index, each in numbered for name, value in each.moments.sums.items()}


def total(replicas: Sequence[Replica]) -> Moments:
    """Add all sums up, in the order of the devices.

    Args:
        replicas: All replicas; the first one's sums are changed.

    Returns:
        The sums, on the first device.
    """
    moments = replicas[0].moments
    for each in replicas[1:]:
        for name, value in each.moments.sums.items():
            known = moments.sums.get(name)
            moments.sums[name] = value.to(replicas[0].device) if known is None else known + value.to(known.device)
    return moments


def deal(work: Callable[[int, Replica], None], start: int, count: int, replicas: Sequence[Replica]) -> Iterator[range]:
    """Do numbered work, one piece a replica side by side; the same number always goes to the same replica.

    Args:
        work: Does one piece.
        start: First number; a multiple of the replicas.
        count: Number after the last.
        replicas: All replicas.

    Yields:
        The numbers that were done together.
    """
    with ThreadPoolExecutor(len(replicas)) as pool:
        for first in range(start, count, len(replicas)):
            together = range(first, min(first + len(replicas), count))
            if len(replicas) == 1:
                # In this thread, where an interruption ends it.
                work(first, replicas[0])
            else:
                list(pool.map(work, together, replicas))
            yield together


def _prefix(index: int) -> str:
    return f"{index}/" if index else ""

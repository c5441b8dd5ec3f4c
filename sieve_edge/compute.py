"""Where candidates are scored: how a search is computed, which changes nothing of what it finds."""

import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from sieve_edge.errors import EnvironmentMissing

INSTALL_RAY = "pip install 'sieve-edge[ray]'"
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Compute:
    """Where the search scores its candidates; no part of any stage's key.

    Attributes:
        executor: ``"local"`` (in this process) or ``"ray"``.
        address: Ray cluster that is joined; None for one that is started for this run.
        workers: Ray workers; None for as many as the cluster has room for.
        num_gpus: GPUs of each Ray worker; may be a fraction.
    """

    executor: str = "local"
    address: str | None = None
    workers: int | None = None
    num_gpus: float = 0.0

    def require(self) -> None:
        """Look whether Ray is there, if it is asked for, before anything expensive.

        Raises:
            EnvironmentMissing: If it is not installed, or nobody listens at the address.
        """
        if self.executor != "ray":
            return
        if find_spec("ray") is None:
            raise EnvironmentMissing(f"--executor ray: ray is not installed; run: {INSTALL_RAY}")
        # Ray itself would try for a quarter of an hour.
        known = os.environ.get("RAY_ADDRESS", "") if self.address == "auto" else self.address or ""
        host, _, port = known.removeprefix("ray://").rpartition(":")
        try:
            if host:
                socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise EnvironmentMissing(
                f"--ray-address {self.address}: {error}; on that machine run: ray start --head"
            ) from error

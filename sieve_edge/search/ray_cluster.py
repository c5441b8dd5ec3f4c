"""The Ray cluster of a search: one that is joined, or one on this machine that lives as long as the search.

Model and bank are put once into Ray's shared memory, which carries them to every node that has a worker.
"""

import os
import secrets
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from sieve_edge.compute import Compute
from sieve_edge.errors import EnvironmentMissing
from sieve_edge.model.arrays import bank_arrays, model_arrays
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.load import LoadedModel
from sieve_edge.progress import Progress
from sieve_edge.search.ray_executor import RayExecutor, import_ray
from sieve_edge.search.ray_worker import Worker
from sieve_edge.search.scoring import ScoringData


class RayCluster:
    """``Workers`` on a Ray cluster."""

    def __init__(self, compute: Compute, threads: int) -> None:
        """Remember what is asked for; ``with`` connects.

        Args:
            compute: Cluster, number of workers, GPUs of each.
            threads: Torch threads of a worker, which are also the CPUs that it asks Ray for.
        """
        self._compute = compute
        self._threads = threads
        self._opened = ExitStack()
        self._executor: RayExecutor | None = None

    def __enter__(self) -> "RayCluster":
        self._compute.require()
        if self._compute.address is None:
            _close_off()
        ray, address = import_ray(), self._compute.address
        try:
            where = self._own() if address is None else {"address": address}
            ray.init(log_to_driver=False, logging_level="ERROR", **where)
        except Exception as error:  # Ray's errors here share no narrower base
            self._opened.close()
            told = " ".join(str(error).split())[:300].rstrip(".")
            if address is None:
                raise EnvironmentMissing(f"Ray does not start here: {told}; RAY_TMPDIR=DIR moves its files") from error
            raise EnvironmentMissing(
                f"Ray at {address}: {told}; this machine must be a node of it: ray start --address=HOST:PORT"
            ) from error
        self._opened.callback(ray.shutdown)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def executor(self, loaded: LoadedModel, bank: ProjectionBank, data: ScoringData, progress: Progress) -> RayExecutor:
        """Start the workers; see ``Workers``.

        Args:
            loaded: Dense model.
            bank: Its projections.
            data: Prompts and settings.
            progress: Where progress is shown.

        Returns:
            The executor.

        Raises:
            EnvironmentMissing: If the cluster was started here and this machine cannot hold a worker.
        """
        ray, compute = import_ray(), self._compute
        room = self._room(ray)
        if room == 0 and compute.address is None:
            raise EnvironmentMissing(
                f"Ray finds no {compute.num_gpus:g} GPUs on this machine, which --num-gpus asks for; lower it, or join "
                "a cluster with --ray-address"
            )
        count = compute.workers or max(room, 1)
        each = f"{self._threads} CPUs, {compute.num_gpus:g} GPUs each"
        progress.say(f"  ray: {count} workers, {each}; room for {room} on {len(_alive(ray))} nodes")
        names = [spec.name for spec in loaded.specs]
        # A worker sees no GPU but its own, whatever the number of the one that is used here.
        data = replace(data, device=torch.device(data.device).type)
        given = (model_arrays(loaded.model), bank_arrays(bank, names), loaded.specs, data)
        options = {"num_cpus": self._threads, "num_gpus": compute.num_gpus, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(Worker).options(**options)
        self._executor = RayExecutor(ray, actor, [ray.put(item) for item in given], count, data.device, progress)
        return self._executor

    def metrics(self) -> dict[str, Any]:
        """Say who they were; see ``Workers``.

        Returns:
            Executor, number of workers, and how many were lost.
        """
        made = self._executor
        return {"executor": "ray", "workers": made.count if made else 0, "workers_lost": made.lost if made else 0}

    def fallbacks(self) -> tuple[str, ...]:
        """Say what was not as asked for; see ``Workers``.

        Returns:
            Processors that differ from this process's.
        """
        others = sorted(self._executor.other_processors) if self._executor else []
        return tuple(
            f"Ray workers on another processor ({name}): scores may differ in the last bits" for name in others
        )

    def _own(self) -> dict[str, Any]:
        """Settings of a Ray that nobody but this run can use."""
        cpus = max((self._compute.workers or 1) * self._threads, len(os.sched_getaffinity(0)))
        settings: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        if "RAY_TMPDIR" not in os.environ:
            folder = tempfile.TemporaryDirectory(prefix="sieve-ray-", ignore_cleanup_errors=True)
            settings["_temp_dir"] = self._opened.enter_context(folder)
        return settings

    def _room(self, ray: Any) -> int:
        """Count the workers that fit on the cluster's nodes."""
        room = 0
        for node in _alive(ray):
            fits = int(node["Resources"].get("CPU", 0.0) // self._threads)
            if self._compute.num_gpus:
                fits = min(fits, int(node["Resources"].get("GPU", 0.0) / self._compute.num_gpus))
            room += fits
        return room


def _alive(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _close_off() -> None:
    """Set what Ray reads when it is imported: no reports about its use, and a token that only this run knows.

    Ray listens on every interface, and by itself would leave its token in the user's home.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

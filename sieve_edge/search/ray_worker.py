"""What runs on a Ray cluster: one worker, which scores what it is handed; imports no ray.

Model and bank are arrays in the shared memory of the worker's node, which it uses without a copy of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata

import torch

from sieve_edge.artifacts import MatrixSpec
from sieve_edge.model.arrays import ArrayBank, ModelArrays, rebuild_model
from sieve_edge.search.scoring import Outcome, Request, Scorer, ScoringData

PACKAGES = ("sieve-edge", "torch", "transformers", "numpy")
"""Their versions must be those of the process that asks."""


def compute_facts(device: str) -> dict[str, str]:
    """Name what the bits of a score depend on, beside what a worker is given.

    Args:
        device: Torch device.

    Returns:
        Processor, and versions of ``PACKAGES``.
    """
    gpu = device.startswith("cuda")
    processor = torch.cuda.get_device_name() if gpu else torch.backends.cpu.get_cpu_capability()
    return {"processor": processor, **{package: metadata.version(package) for package in PACKAGES}}


class Worker:
    """One Ray worker: a scorer over the arrays in its node's shared memory."""

    def __init__(self, model: ModelArrays, bank: ArrayBank, specs: Sequence[MatrixSpec], data: ScoringData) -> None:
        """Put the model together.

        Args:
            model: Dense model.
            bank: Its projections.
            specs: Its matrices.
            data: Prompts and settings.
        """
        self._device = data.device
        self._scorer = Scorer(rebuild_model(model, data.device), specs, bank, data)

    def facts(self) -> dict[str, str]:
        """Say what this worker computes with.

        Returns:
            Processor, and versions of packages.
        """
        return compute_facts(self._device)

    def run(self, request: Request) -> Outcome:
        """Score one candidate.

        Args:
            request: What to score.

        Returns:
            The outcome, on the CPU.
        """
        outcome = self._scorer.run(request)
        return replace(outcome, factors={name: tensor.cpu() for name, tensor in outcome.factors.items()})

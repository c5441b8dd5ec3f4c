"""Scores candidates on the selection split, each only once, and remembers them on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sieve_edge.config import Recipe, Task
from sieve_edge.files import append_jsonl, read_jsonl
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.levels import Ranks
from sieve_edge.model.load import LoadedModel, shared_copy
from sieve_edge.model.switchable import install_switchable_, switch_
from sieve_edge.progress import Progress
from sieve_edge.task.evaluate import measure
from sieve_edge.task.examples import Example
from sieve_edge.task.likelihood import label_log_likelihoods


class CandidateScorer:
    """One switchable model, the selection prompts, and the history of what was scored."""

    def __init__(
        self,
        loaded: LoadedModel,
        bank: ProjectionBank,
        task: Task,
        selection: Sequence[Example],
        recipe: Recipe,
        history: Path,
        progress: Progress,
    ) -> None:
        """Make a switchable copy of the model, which shares its weights, and read the history.

        Args:
            loaded: Dense model.
            bank: Its projections.
            task: The task.
            selection: Examples to score on.
            recipe: Batch size, device.
            history: JSON-lines file that records are appended to.
            progress: Where progress is shown.
        """
        records, torn = read_jsonl(history)
        if torn:
            progress.say("  the history's last line was torn and is dropped; its candidate is scored again")
        self.records: dict[float, dict[str, Any]] = {record["factor"]: record for record in records}
        self._history = history
        self._progress = progress
        self._batch_tokens = recipe.search.batch_tokens
        self._prompts = [loaded.encode(example.prompt) for example in selection]
        self._answers = [loaded.encode(answer, special=False) for answer in task.labels.values()]
        self._labels_N = np.array([example.label for example in selection])
        model = shared_copy(loaded.model)
        self._leaders = install_switchable_(model, loaded.specs, bank)
        self._model = TorchTextModel(model, recipe.device)

    def score(self, factor: float, ranks: Ranks, kept_linears: float, needed: float) -> bool:
        """Score a candidate unless the history has it.

        Args:
            factor: Its factor, which names it in the history.
            ranks: Its ranks.
            kept_linears: Fraction of the linears' parameters it keeps.
            needed: Corrected balanced accuracy from which on it is feasible.

        Returns:
            Whether it is feasible.
        """
        if factor not in self.records:
            switch_(self._leaders, ranks)
            title = f"score factor {factor:g}, keeps {kept_linears:.3f}"
            with self._progress.task(title, len(self._prompts), "prompts") as advance:
                scores_NK = label_log_likelihoods(
                    self._model, self._prompts, self._answers, self._batch_tokens, advance
                )
            measured = measure(scores_NK, self._labels_N)
            feasible = measured["corrected"] >= needed and not measured["collapsed"]
            record = {"factor": factor, "kept_linears": kept_linears, "feasible": feasible, **measured}
            append_jsonl(self._history, record)
            self.records[factor] = record
        record = self.records[factor]
        word = "feasible" if record["feasible"] else "collapsed" if record["collapsed"] else "below what is needed"
        self._progress.say(f"  factor {factor:g} keeps {record['kept_linears']:.3f}: {record['corrected']:.4f}, {word}")
        return bool(record["feasible"])

"""Plain pairs against pivoted storage: ``python -m benchmarks.storage``.

The factors of a finished learn stage (made first if it is missing) at several kept fractions in both storages:
accuracy on calibration examples that the statistics did not see, with float32 weights and with the linears' rounded to
8 bits, size, and time per answer and per token of the exported graph in ONNX Runtime, all models in turn in one
process.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks._common import Demo, finish, finished_run, load_demo, options
from sieve_edge.config import BITS
from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.timing import time_models
from sieve_edge.export.to_onnx import write_graph
from sieve_edge.fuse import install_plan_
from sieve_edge.model.bank import ProjectionBank
from sieve_edge.model.blocks import restore, round_nearest
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.levels import kept_params, ranks_at
from sieve_edge.model.load import shared_copy
from sieve_edge.model.matrices import linear_params
from sieve_edge.task.examiner import Examiner

UNSEEN = 300


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    run = finished_run(demo, "learn")
    bank = ProjectionBank(run.folder("learn"))
    factors = (0.75,) if arguments.quick else (0.9, 0.75, 0.6)
    with tempfile.TemporaryDirectory() as folder:
        rows, models = [], {}
        for storage in ("pair", "pivoted"):
            for factor in factors:
                row, model = _candidate(
                    demo, bank, storage, factor, Path(folder) / f"{storage}-{factor}", arguments.quick
                )
                rows.append(row)
                models[f"{storage}-{factor}"] = OrtTextModel(model, demo.target.threads)
        prompt = demo.prompts("calibration", 1)[0]
        repeats = 10 if arguments.quick else 30
        timings = time_models(models, dict.fromkeys(models, prompt), 1, 16, repeats, np.random.default_rng(0))
    for row, timing in zip(rows, timings.values(), strict=True):
        row["answer ms"], row["token ms"] = timing.time_per_answer_ms, timing.time_per_token_p50_ms
    finish("storage", demo, arguments, started, rows)


def _candidate(
    demo: Demo, bank: ProjectionBank, storage: str, factor: float, folder: Path, quick: bool
) -> tuple[dict[str, Any], Path]:
    specs = demo.loaded.specs
    ranks = ranks_at(specs, factor, storage, demo.target.rank_multiple)
    kept = kept_params(specs, ranks, storage) / linear_params(specs)
    model = shared_copy(demo.loaded.model)
    _, fallbacks, largest = install_plan_(model, specs, bank, ranks, storage)
    folder.mkdir()
    write_graph(model, folder)
    size_mib = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    row = {"storage": storage, "factor": factor, "kept": kept, "rank of o": ranks["0.o"], "MiB": size_mib}
    row |= {"largest coefficient": largest, "plain pairs among pivoted": len(fallbacks)}
    if not quick:
        examples = demo.splits["calibration"][-UNSEEN:]
        exam = Examiner(demo.task).exam(examples, demo.loaded.backend, demo.loaded.ends)
        for name in ("unseen accuracy", "unseen accuracy, int8"):
            answers = exam.take(TorchTextModel(model, "cpu"), demo.recipe.search.batch_tokens)
            row[name] = exam.grade(answers).score
            _round_linears_(model)
    return row, folder


def _round_linears_(model: Any) -> None:
    """Round as an int8 target stores them, factors too; the embedding, and a head that shares it, stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            weight_OI = module.weight.detach()
            module.weight = nn.Parameter(restore(round_nearest(weight_OI, BITS["int8"]), weight_OI.shape[1]))


if __name__ == "__main__":
    main()

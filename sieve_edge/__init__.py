"""Prune a language model to what one task needs, for one device, and prove it there.

The pipeline is the table below: every verb is a module or package of the same name, a
command, and a folder of a run. Importing this package imports nothing heavy.
"""

import os
from typing import NamedTuple

__version__ = "0.1.0"

# torch's library of matrix products (MKL) reads this at its first product. Without it, on some processors, the last
# bits of a product with one row depend on where its arrays lie in memory, so that a run that goes on, or scores in
# another process, could end in other bits than one that does not.
os.environ.setdefault("MKL_CBWR", "AUTO")


class Stage(NamedTuple):
    """One row of the stage table."""

    verb: str
    reads: tuple[str, ...]
    writes: str
    schema: int
    shared: bool


STAGES: tuple[Stage, ...] = (
    Stage("calibrate", (), "Gram matrices, Fisher matrices and the dense model's scores", 4, True),
    Stage("learn", ("calibrate",), "projection bank", 2, True),
    Stage("search", ("calibrate", "learn"), "pruning plan", 4, False),
    Stage("fuse", ("calibrate", "learn", "search"), "Hugging Face checkpoint", 4, False),
    Stage("tune", ("fuse",), "tuned checkpoint, if tuning is asked for", 5, False),
    Stage("vocabulary", ("fuse", "tune"), "checkpoint with fewer tokens, if that is asked for", 4, False),
    Stage("quantize", ("fuse", "tune", "vocabulary"), "type of every weight, with its codes or importance", 2, False),
    Stage("export", ("fuse", "tune", "vocabulary", "quantize"), "deployable folder, dense and pruned", 5, False),
    Stage("validate", ("search", "fuse", "export"), "report", 4, False),
)
"""Stages in order. ``shared`` stages depend on little of the target (whether widths are pruned), lie beside the runs,
and are content-addressed."""

"""What gathering Gram matrices costs: ``python -m benchmarks.calibration``.

Tokens per second of calibrate's pass, prompts and answers, against a plain forward pass over the same tokens, in turn.
"""

import time

import numpy as np

from benchmarks._common import Demo, finish, load_demo, options
from sieve_edge.calibrate import GRAM_BATCH_TOKENS, needed_sides, run_with_answers
from sieve_edge.model.statistics import Moments
from sieve_edge.task.likelihood import length_batches


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    prompts = demo.prompts("calibration", 60 if arguments.quick else 280)
    batches = [
        [prompts[row] for row in rows] for rows in length_batches([len(item) for item in prompts], GRAM_BATCH_TOKENS)
    ]
    tokens = sum(len(prompt) + demo.task.max_new_tokens for prompt in prompts)
    seconds: dict[str, list[float]] = {"plain forward": [], "with Gram matrices": []}
    for _ in range(3):
        for name, times in seconds.items():
            times.append(_pass(demo, batches, gather=name != "plain forward"))
    plain = float(np.median(seconds["plain forward"]))
    rows = [
        {
            "pass": name,
            "tokens": tokens,
            "tokens/s": tokens / float(np.median(times)),
            "of plain": plain / float(np.median(times)),
        }
        for name, times in seconds.items()
    ]
    finish("calibration", demo, arguments, started, rows)


def _pass(demo: Demo, batches: list[list[list[int]]], *, gather: bool) -> float:
    sides = needed_sides(demo.loaded, demo.recipe.learn) if gather else {spec.name: () for spec in demo.loaded.specs}
    moments = Moments()
    begun = time.perf_counter()
    for batch in batches:
        run_with_answers(demo.loaded, sides, moments, batch, demo.task.max_new_tokens, "cpu")
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

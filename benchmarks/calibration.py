"""What gathering Gram matrices costs: ``python -m benchmarks.calibration``.

Tokens per second of calibrate's pass, prompts and answers, against a plain forward pass over the same tokens, in turn;
both compute the prefix that all prompts share once.
"""

import time

import numpy as np

from benchmarks._common import Demo, finish, load_demo, options
from sieve_edge.calibrate.grams import GRAM_BATCH_TOKENS, gather_prefix, needed_sides, run_with_answers
from sieve_edge.model.statistics import Moments
from sieve_edge.task.likelihood import prefix_and_tails


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__)
    started = time.perf_counter()
    demo = load_demo(arguments)
    prompts = demo.prompts("calibration", 60 if arguments.quick else 280)
    tokens = sum(len(prompt) + demo.task.max_new_tokens for prompt in prompts)
    seconds: dict[str, list[float]] = {"plain forward": [], "with Gram matrices": []}
    for _ in range(3):
        for name, times in seconds.items():
            times.append(_pass(demo, prompts, gather=name != "plain forward"))
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


def _pass(demo: Demo, prompts: list[list[int]], *, gather: bool) -> float:
    sides = needed_sides(demo.loaded, demo.recipe.learn) if gather else {spec.name: () for spec in demo.loaded.specs}
    moments = Moments()
    prefix, batches = prefix_and_tails(prompts, GRAM_BATCH_TOKENS)
    begun = time.perf_counter()
    past = gather_prefix(demo.loaded, sides, moments, prefix, len(prompts), "cpu")
    for batch in batches:
        run_with_answers(demo.loaded, sides, moments, past, batch, demo.task.max_new_tokens, demo.ended, "cpu")
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

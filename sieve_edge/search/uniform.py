"""Uniform pruning: bisection on one factor for all matrices.

Source: LLM-Sieve, section 4.2.1.
"""

from collections.abc import Callable, Sequence

Feasible = Callable[[float], bool]


def bisect(levels: Sequence[float], resolution: float, feasible: Feasible) -> float:
    """Find the smallest feasible factor, first among the levels and then between two of them.

    Pseudocode::

        low, high = 0, 1                       # 1, the dense model, is feasible by definition
        while levels lie between low and high:
            try the middle one: feasible -> high, else -> low
        while high - low > resolution:
            try their middle: feasible -> high, else -> low
        return high

    Bisection assumes that a model which keeps more is no worse; where scores are noisy the result is feasible
    all the same, but a smaller feasible factor may exist.

    Args:
        levels: Factors in (0, 1), any order.
        resolution: Stop when the factor is known this closely.
        feasible: Scores a factor.

    Returns:
        The smallest factor found feasible; 1 if none is.
    """
    low, high = 0.0, 1.0
    while between := sorted(level for level in levels if low < level < high):
        middle = between[len(between) // 2]
        low, high = (low, middle) if feasible(middle) else (middle, high)
    while low > 0.0 and high - low > resolution + 1e-9:
        middle = round((low + high) / 2.0, 4)
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high

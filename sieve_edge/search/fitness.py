"""Fitness of a candidate in the paper's genetic algorithm."""

import math


def fitness(kept_linears: float, accuracy: float, needed: float, kappa: float) -> float:
    """Reward compression, and punish an accuracy below what is needed exponentially.

    Args:
        kept_linears: Fraction of the linears' parameters that is kept, rho, in [0, 1].
        accuracy: Measured accuracy a.
        needed: Accuracy that the tolerance asks for, eta.
        kappa: Steepness of the punishment.

    Returns:
        ``(1 / rho) * exp(-kappa * max(0, eta - a))``; 0 where every block is left out, since the punishment is finite
        and the reward would not be.

    Source:
        LLM-Sieve, eq. (7), rebuilt from its prose (method.md, section 6).
    """
    if kept_linears == 0.0:
        return 0.0
    return math.exp(-kappa * max(0.0, needed - accuracy)) / kept_linears

"""Operators of the genetic algorithm: pure functions, the random generator passed in.

Source: LLM-Sieve, section 4.2.2.
"""

from collections.abc import Sequence

import numpy as np

from sieve_edge.search.space import Chromosome


def random_chromosome(gene_levels: Sequence[int], rng: np.random.Generator) -> Chromosome:
    """Draw every gene at random.

    Args:
        gene_levels: How many levels each gene has.
        rng: Random generator.

    Returns:
        A chromosome.
    """
    return tuple(int(rng.integers(count)) for count in gene_levels)


def roulette(fitness: Sequence[float], rng: np.random.Generator) -> int:
    """Draw an individual with probability proportional to its fitness.

    Args:
        fitness: Fitness of each individual, not negative.
        rng: Random generator.

    Returns:
        Its index; any with equal probability where all fitnesses are zero.
    """
    total = float(sum(fitness))
    if total <= 0.0:
        return int(rng.integers(len(fitness)))
    return int(rng.choice(len(fitness), p=np.asarray(fitness) / total))


def crossover(
    first: Chromosome, second: Chromosome, probability: float, rng: np.random.Generator
) -> tuple[Chromosome, Chromosome]:
    """Swap the right parts of two chromosomes behind one random point.

    Args:
        first: A parent.
        second: The other parent.
        probability: With which anything is swapped at all.
        rng: Random generator.

    Returns:
        Two children; each of their genes is that of a parent at the same place.
    """
    if len(first) < 2 or rng.random() >= probability:
        return first, second
    point = int(rng.integers(1, len(first)))
    return first[:point] + second[point:], second[:point] + first[point:]


def mutate(
    chromosome: Chromosome, gene_levels: Sequence[int], probability: float, rng: np.random.Generator
) -> Chromosome:
    """Move genes one step along the grid, up or down.

    Args:
        chromosome: Genes.
        gene_levels: How many levels each gene has.
        probability: With which each gene moves; at an end of the grid it moves to its only neighbour.
        rng: Random generator.

    Returns:
        The mutant.
    """
    genes = list(chromosome)
    for index in map(int, np.flatnonzero(rng.random(len(genes)) < probability)):
        step = 1 if rng.random() < 0.5 else -1
        moved = genes[index] + step
        if not 0 <= moved < gene_levels[index]:
            moved = genes[index] - step
        genes[index] = min(max(moved, 0), gene_levels[index] - 1)
    return tuple(genes)

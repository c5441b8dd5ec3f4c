"""The paper's genetic algorithm.

Source: LLM-Sieve, section 4.2.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sieve_edge.files import append_jsonl, read_jsonl
from sieve_edge.recipe import GeneticRecipe
from sieve_edge.search.budgets import Budget, first_exceeded
from sieve_edge.search.candidates import Candidates
from sieve_edge.search.fitness import fitness
from sieve_edge.search.operators import crossover, mutate, random_chromosome, roulette
from sieve_edge.search.space import Chromosome, SearchSpace

_CHUNK = 10
"""Candidates that are scored before the tokens spent are looked at; fixed, so that workers do not change the result."""


@dataclass(frozen=True)
class Individual:
    """A scored chromosome."""

    chromosome: Chromosome
    fitness: float
    kept_linears: float
    accuracy: float


@dataclass(frozen=True)
class Generation:
    """One line of ``generations.jsonl``."""

    index: int
    best_fitness: float
    mean_fitness: float
    best_kept_linears: float
    best_accuracy: float
    evaluations: int
    tokens: float


def evolve(
    space: SearchSpace,
    candidates: Candidates,
    budgets: Sequence[Budget],
    needed: float,
    recipe: GeneticRecipe,
    rng: np.random.Generator,
    log: Path,
) -> None:
    """Let a population of plans evolve; what was scored stays with ``candidates``.

    Pseudocode::

        population = one uniform chromosome per level of the grid, the rest random
        repeat
            children = crossover and mutation of parents drawn in proportion to fitness
            population = the fittest of population and children, ties broken by chromosome
        until the best fitness changed by less than ``patience_change`` over ``patience`` generations

    Chromosomes over a budget are never scored: their fitness is 0. Runs with the same seed make the same choices, so
    an interrupted run repeats its generations from the history without scoring anything twice.

    Args:
        space: Search space.
        candidates: Scores chromosomes.
        budgets: What a plan may cost.
        needed: Accuracy that the tolerance asks for.
        recipe: The algorithm's constants.
        rng: Random generator.
        log: JSON-lines file that generations are appended to.
    """
    written = len(read_jsonl(log)[0])
    founders = list(dict.fromkeys(space.uniform(factor) for factor in space.grid))[: recipe.population]
    while len(founders) < recipe.population:
        founders.append(random_chromosome(space.gene_levels, rng))
    best: list[float] = []
    seen: dict[Chromosome, Individual] = {}
    spent = _spent(candidates, recipe.max_tokens)
    population = _fittest(_score(founders, space, candidates, budgets, needed, recipe, seen, spent), recipe.population)
    while population:
        best.append(population[0].fitness)
        generation = Generation(
            index=len(best) - 1,
            best_fitness=population[0].fitness,
            mean_fitness=float(np.mean([individual.fitness for individual in population])),
            best_kept_linears=population[0].kept_linears,
            best_accuracy=population[0].accuracy,
            evaluations=len(seen),
            tokens=candidates.tokens,
        )
        if generation.index >= written:
            append_jsonl(log, asdict(generation))
        if converged(best, recipe.patience, recipe.patience_change) or spent():
            return
        children = _breed(population, space, recipe, rng)
        scored = _score(children, space, candidates, budgets, needed, recipe, seen, spent)
        population = _fittest([*population, *scored], recipe.population)


def converged(best: Sequence[float], patience: int, change: float) -> bool:
    """Say whether the best fitness has stood still.

    Args:
        best: Best fitness of each generation.
        patience: Generations looked back.
        change: Relative change that counts.

    Returns:
        True if it rose by less than that over the last ``patience`` generations.
    """
    return len(best) > patience and best[-1] < best[-1 - patience] * (1.0 + change)


def _breed(
    population: Sequence[Individual], space: SearchSpace, recipe: GeneticRecipe, rng: np.random.Generator
) -> list[Chromosome]:
    weights = [individual.fitness for individual in population]
    children: list[Chromosome] = []
    while len(children) < recipe.population:
        parents = [population[roulette(weights, rng)].chromosome for _ in range(2)]
        pair = crossover(parents[0], parents[1], recipe.crossover_probability, rng)
        children += [mutate(child, space.gene_levels, recipe.mutation_probability, rng) for child in pair]
    return children[: recipe.population]


def _score(
    chromosomes: Sequence[Chromosome],
    space: SearchSpace,
    candidates: Candidates,
    budgets: Sequence[Budget],
    needed: float,
    recipe: GeneticRecipe,
    seen: dict[Chromosome, Individual],
    spent: Callable[[], bool],
) -> list[Individual]:
    new = [chromosome for chromosome in dict.fromkeys(chromosomes) if chromosome not in seen]
    for chromosome in new:
        ranks = space.ranks(chromosome)
        if first_exceeded(space.specs, budgets, ranks):
            seen[chromosome] = Individual(chromosome, 0.0, candidates.kept(ranks), 0.0)
    wanted = [chromosome for chromosome in new if chromosome not in seen]
    for start in range(0, len(wanted), _CHUNK):
        if spent():
            break
        chunk = wanted[start : start + _CHUNK]
        verdicts = candidates.verdicts([space.ranks(chromosome) for chromosome in chunk], give_up=candidates.judged)
        for chromosome, verdict in zip(chunk, verdicts, strict=True):
            kept = candidates.kept(space.ranks(chromosome))
            worth = fitness(kept, verdict.accuracy, needed, recipe.kappa)
            seen[chromosome] = Individual(chromosome, worth, kept, verdict.accuracy)
    return [seen[chromosome] for chromosome in new if chromosome in seen]


def _spent(candidates: Candidates, max_tokens: int | None) -> Callable[[], bool]:
    """Say whether the tokens of everything that this run asked for, cached or not, reach the limit."""
    return lambda: max_tokens is not None and candidates.tokens >= max_tokens


def _fittest(individuals: Sequence[Individual], count: int) -> list[Individual]:
    unique = {individual.chromosome: individual for individual in individuals}
    return sorted(unique.values(), key=lambda item: (-item.fitness, item.chromosome))[:count]

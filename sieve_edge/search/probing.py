"""Checks the damage table against measured KL divergences, where it matters."""

import itertools
import math
from collections.abc import Mapping

from sieve_edge.model.bank import ProjectionBank
from sieve_edge.progress import Progress
from sieve_edge.search.candidates import Candidates
from sieve_edge.search.space import SearchSpace
from sieve_edge.search.surrogate import Damage, corrected, corrections, damage_table, departures

_FACTOR = 0.35
"""Matrices are probed at the first level at or below this factor: far enough from dense for a KL to be seen."""

_ROUNDS = 3
_JUMP = 3.0

Probe = tuple[int, int]
"""Matrix and level."""


def measured_damage(
    space: SearchSpace, bank: ProjectionBank, candidates: Candidates, per_kind: int, progress: Progress
) -> Damage:
    """Read the damage table, and correct it by a few measured KL divergences.

    Every kind of matrix is probed at evenly spaced layers, alone. Where two neighbouring probes depart from the table
    very differently, the layer beside the one that departs more is probed too, so that an outlier is not taken for
    the rule of its neighbours.

    Args:
        space: Search space.
        bank: Projections with their errors.
        candidates: Measures divergences.
        per_kind: Probes of each kind to start with; 0 leaves the table alone.
        progress: Where progress is shown.

    Returns:
        The table.
    """
    damage = damage_table(space, bank)
    measured: dict[Probe, float] = {}
    probes = _spread(space, per_kind)
    for _ in range(1 + _ROUNDS):
        if not probes:
            break
        plans = [space.ranks(tuple(gene if index == probe else 0 for index in _genes(space))) for probe, gene in probes]
        measured |= zip(probes, candidates.divergences(plans), strict=True)
        probes = _beside_outliers(space, damage, measured)
    if not measured:
        return damage
    factors = corrections(space, damage, measured)
    changed = sum(factor != 1.0 for factor in factors)
    progress.say(
        f"  damage checked against {len(measured)} measured KLs: {changed} of {len(factors)} matrices corrected"
    )
    return corrected(damage, factors)


def _genes(space: SearchSpace) -> range:
    return range(len(space.gene_levels))


def _spread(space: SearchSpace, per_kind: int) -> list[Probe]:
    uniform = space.uniform(_FACTOR)
    chosen = []
    for kind in dict.fromkeys(spec.kind for spec in space.specs):
        mine = [index for index, spec in enumerate(space.specs) if spec.kind == kind]
        places = sorted({round(step * (len(mine) - 1) / max(per_kind - 1, 1)) for step in range(per_kind)})
        chosen += [(mine[place], uniform[mine[place]]) for place in places]
    return [(index, gene) for index, gene in chosen if gene > 0]


def _beside_outliers(space: SearchSpace, damage: Damage, measured: Mapping[Probe, float]) -> list[Probe]:
    away = departures(damage, measured)
    uniform = space.uniform(_FACTOR)
    wanted: dict[int, None] = {}
    for kind in dict.fromkeys(spec.kind for spec in space.specs):
        mine = [index for index, spec in enumerate(space.specs) if spec.kind == kind]
        known = [place for place, index in enumerate(mine) if index in away]
        for left, right in itertools.pairwise(known):
            here, there = away[mine[left]], away[mine[right]]
            if right - left > 1 and abs(here - there) > math.log(_JUMP):
                wanted[mine[left + 1 if abs(here) > abs(there) else right - 1]] = None
    return [(index, uniform[index]) for index in wanted if uniform[index] > 0]

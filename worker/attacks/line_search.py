"""Line search: the strength of an attack that does most harm to the rule of the run.

ByzFL's optimal attacks expand and contract one step from a start. Effects of robust rules are sawtooth
functions of the strength: they rise until a vector is left out. So a grid comes first here, and the best
of its peaks are refined by golden sections of the logarithm.

A peak that is narrower than a step of the grid can be missed: against CAF, along the line of IPM, a dense
grid finds effects some 6 % larger. So `optimal` is the best of these strengths, not of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from varangian.worker.attacks.base import Knowledge
from varangian.worker.attacks.geometry import rms_distance
from varangian.worker.attacks.live_rule import Effect

Objective: TypeAlias = Literal["deviation", "inner"]
"""The quantity that an attacker makes as large as it can: |F - mean|^2 of the update F, or -<F, mean>."""
FINE = tuple(2 ** (quarter / 4) for quarter in range(-8, 9))
"""Strengths that are tried, in usual ones: quarter octaves from 1/4 to 4."""
COARSE = (1 / 16, 1 / 8, 8, 16, 64, 256, 1024)
"""Others that are tried, for rules that take vectors of any length; the last one grows by `GROWTH`, up to
`LONGEST`, while that does more harm."""
GROWTH, LONGEST = 4, 2**20
PEAKS = 2
"""Peaks of the grid that are refined, at most."""
NEAR = 0.6
"""The part of the best effect of the grid from which on a peak is refined: between two points of the grid
one is up to 1.4 times as high as they are."""
SECTIONS = 6
"""Golden sections of each: to 2 % of a strength, from a quarter octave on both sides."""
EQUAL = 1e-3
"""Relative difference of effects below which the smaller strength is preferred: a rule that cannot be
moved further is not sent larger vectors."""
GOLDEN = (math.sqrt(5) - 1) / 2


def strongest(knows: Knowledge, base: Tensor, direction: Tensor, objective: Objective) -> float | None:
    """The t > 0 for which vectors base + t direction of all attackers do most harm to the rule.

    Args:
        knows: all that attackers know.
        base: (d,), where the line begins.
        direction: (d,) of the line.
        objective: the harm.

    Returns:
        None where the rule is not known, as in a round of too few vectors, which has no update.
    """
    if knows.rule is None or not bool(direction.any()):
        return None
    probe = knows.rule.along(knows.honest, base, direction, knows.f)
    # Vectors are left out by rules when they are about as far from the mean as honest ones.
    usual = rms_distance(knows.honest) / float(torch.linalg.vector_norm(direction))
    return highest(lambda t: harm(probe(t), objective), usual if 0 < usual < math.inf else 1.0)


def harm(effect: Effect, objective: Objective) -> float:
    """The value of an effect for the attacker."""
    return effect.deviation if objective == "deviation" else -effect.inner


def highest(value: Callable[[float], float], usual: float) -> float:
    """The smallest t > 0 at which a function is about as high as anywhere else.

    Args:
        value: the function, in 25 to 40 calls; not finite is the lowest.
        usual: where the grid is finest.
    """
    known = dict[float, float]()

    def ask(t: float) -> float:
        if t not in known:
            found = value(t)
            known[t] = found if math.isfinite(found) else -math.inf
        return known[t]

    grid = sorted(usual * factor for factor in (*FINE, *COARSE))
    best = max(map(ask, grid))
    while ask(grid[-1]) == best and grid[-1] < usual * LONGEST:
        grid.append(GROWTH * grid[-1])
        best = max(best, ask(grid[-1]))
    for low, high in _peaks(grid, known):
        _refine(ask, low, high)
    best = max(known.values())
    enough = best - EQUAL * abs(best)
    return min(t for t, found in known.items() if found >= enough)


def _peaks(grid: list[float], known: dict[float, float]) -> list[tuple[float, float]]:
    """The neighbours of the highest peaks of the grid, apart from plateaus."""
    values = [known[t] for t in grid]
    last, best = len(grid) - 1, max(values)
    found = list[tuple[float, float, float]]()
    for place, here in enumerate(values):
        before, after = max(place - 1, 0), min(place + 1, last)
        flat = here - min(values[before], values[after]) <= EQUAL * abs(here)
        if here >= max(values[before], values[after], best - (1 - NEAR) * abs(best)) and not flat:
            found.append((here, grid[before], grid[after]))
    return [(low, high) for _, low, high in sorted(found, reverse=True)[:PEAKS]]


def _refine(ask: Callable[[float], float], low: float, high: float) -> None:
    """Golden sections of the logarithm; `ask` remembers the best."""
    left, right = math.log(low), math.log(high)
    a, b = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
    lower, upper = ask(math.exp(a)), ask(math.exp(b))
    for _ in range(SECTIONS):
        if lower >= upper:
            right, b, upper = b, a, lower
            a = right - GOLDEN * (right - left)
            lower = ask(math.exp(a))
        else:
            left, a, lower = a, b, upper
            b = left + GOLDEN * (right - left)
            upper = ask(math.exp(b))

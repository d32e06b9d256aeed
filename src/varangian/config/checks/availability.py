"""Checks of availability: whether rounds can close with workers that come and go."""

from __future__ import annotations

from collections.abc import Iterator

from varangian.config.build import task
from varangian.config.settings import RunConfig
from varangian.registry import FIXES, Problem, fixes
from varangian.worker.attacks import Mimic, inner_attack
from varangian.worker.simulation.availability import Always

MAX_LOOKUPS = 50_000
"""Most workers times rounds of a timetable that are looked at, which takes about a second."""


def check_attendance(config: RunConfig) -> Iterator[Problem]:
    """Rounds of all workers without a quorum: they wait for workers that wait for a later round."""
    everybody = not config.selection.by_invitation and config.quorum <= config.workers
    if isinstance(config.availability, Always) or not everybody:
        return
    table = task(config).timetable
    present = [len(table.present(round)) for round in range(_rounds_to_check(config))]
    if present[0] == 0:
        rule = "should let a worker take part in round 0, or the run does not begin"
        yield Problem("availability", rule, hint="Choose another seed, or other numbers.")
    elif config.server.shortfall == "wait" and min(present) < config.quorum:
        yield _without_quorum(config, present)


def _without_quorum(config: RunConfig, present: list[int]) -> Problem:
    round = next(i for i, count in enumerate(present) if count < config.quorum)
    quorum, least = config.quorum, min(present)
    rule = f"{present[round]} workers take part in round {round}, too few for its quorum of {quorum}"
    offers = fixes(server__quorum=max(1, least), server__shortfall="skip")
    return Problem("availability", rule, hint=f"Set {FIXES}.", fixes=offers)


def _rounds_to_check(config: RunConfig) -> int:
    return min(config.rounds, max(1, MAX_LOOKUPS // config.workers))


def check_delays(config: RunConfig) -> Iterator[Problem]:
    """Delays of workers that do not exist."""
    chosen: tuple[int, ...] = getattr(config.delays, "workers", ())
    if unknown := [worker for worker in chosen if worker >= config.workers]:
        rule = f"has a delay for worker {unknown[0]}, and they are numbered from 0 to {config.workers - 1}"
        yield Problem("delays", rule)


def check_mimic_attendance(config: RunConfig) -> Iterator[Problem]:
    attack = inner_attack(config.byzantine.attack)
    if (
        not isinstance(config.availability, Always)
        and isinstance(attack, Mimic)
        and attack.target is not None
    ):
        rule = f"mimics worker {attack.target} in every round, and with this `availability` it misses some"
        offers = fixes(byzantine__attack="mimic", availability="always")
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)

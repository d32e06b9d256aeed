"""Whether a run gets anywhere with workers that come and go."""

from __future__ import annotations

from collections.abc import Iterator

from varangian.config.build import timetable
from varangian.config.tree import RunConfig
from varangian.registry import FIXES, Problem, fixes
from varangian.worker.attacks import Mimic
from varangian.worker.simulation.availability import Always

LOOKS = 50_000
"""How many questions to ask a timetable at most, one for each worker and round: a second's worth."""


def check_attendance(config: RunConfig) -> Iterator[Problem]:
    """A round of everybody without a quorum waits for workers who themselves wait for a later round."""
    everybody = not config.selection.by_invitation and config.quorum <= config.workers
    if isinstance(config.availability, Always) or not everybody:
        return
    table = timetable(config)
    present = [len(table.present(round)) for round in range(_looked_at(config))]
    if present[0] == 0:
        rule = "should have somebody there in round 0, or the run does not begin"
        yield Problem("availability", rule, hint="Choose another seed, or other numbers.")
    elif config.server.shortfall == "wait" and min(present) < config.quorum:
        yield _unattended(config, present)


def _unattended(config: RunConfig, present: list[int]) -> Problem:
    round = next(i for i, count in enumerate(present) if count < config.quorum)
    quorum, least = config.quorum, min(present)
    rule = f"{present[round]} workers take part in round {round}, and its quorum of {quorum} never comes"
    offers = fixes(server__quorum=max(1, least), server__shortfall="skip")
    return Problem("availability", rule, hint=f"Set {FIXES}.", fixes=offers)


def _looked_at(config: RunConfig) -> int:
    return min(config.rounds, max(1, LOOKS // config.workers))


def check_delays(config: RunConfig) -> Iterator[Problem]:
    """Delays of workers that are not there."""
    chosen: tuple[int, ...] = getattr(config.delays, "workers", ())
    if unknown := [worker for worker in chosen if worker >= config.workers]:
        rule = f"has a delay for worker {unknown[0]}, and they are numbered from 0 to {config.workers - 1}"
        yield Problem("delays", rule)


def check_mimic_attendance(config: RunConfig) -> Iterator[Problem]:
    attack = config.byzantine.attack
    if (
        not isinstance(config.availability, Always)
        and isinstance(attack, Mimic)
        and attack.target is not None
    ):
        rule = f"mimics worker {attack.target} in every round, and `availability` lets it be away"
        offers = fixes(byzantine__attack="mimic", availability="always")
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)

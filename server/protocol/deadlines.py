"""Deadlines that set themselves: seconds for which a round stays open, from earlier times of arrival.

Theory of operation. A sample is the time from the opening of a round, or from the invitation if that was
earlier, to the vector of one worker. The samples of the last `RECENT` rounds have a median m and a spread

    s = max(1.4826 MAD, 0.05 m),   MAD the median of their distances to m

where 1.4826 MAD estimates the standard deviation of normal samples. The deadline of the next round is

    min(ceiling, max(floor, m + 6 s) 2^skips)

and it is fixed when the round opens. As retransmission timeouts do (RFC 6298), it doubles with every round
in a row that had no update: if all workers have become slower than the deadline, none of their vectors
counts, and what is known of them is too old. It is the ceiling until `KNOWN` rounds are known. The first
round of a process does not count, since workers take their time to start.

Workers that are late. The sample of a worker that is connected and did not come in time is at least the
deadline, and its true time if its vector is offered later: otherwise only fast answers would be known, and
deadlines would shrink from round to round. Workers that are absent, declined or proved faulty have none.

Byzantine workers. While most of the samples are honest, m lies between the least and the largest honest
time, and the MAD is at most the distance of these two, whatever the others do. So Byzantine workers can
bring the deadline neither below the floor nor below 1.3 times the least honest time, nor above the ceiling
or, unless rounds are skipped, above the largest honest time plus 6 times 1.4826 times the distance of the
two (or 5 % of the largest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TypeAlias

from varangian.server.protocol.events import Seconds, Worker

RECENT = 8
"""Rounds whose times of arrival are remembered."""
KNOWN = 2
"""Rounds that are known before deadlines follow from them."""
SPREADS = 6.0
"""Spreads from the median to the deadline."""
NORMAL = 1.4826
"""The standard deviation of normal samples, in medians of their distances to the median."""
LEAST_SPREAD = 0.05
"""The spread is at least this share of the median: times that are all equal by chance leave no room."""


@dataclass(frozen=True)
class RoundArrivals:
    """Arrival times of the vectors of one round, in seconds."""

    round: int
    seconds: Mapping[Worker, Seconds] = field(default_factory=dict[Worker, Seconds])
    """Of the vectors that arrived, in time or noticed later."""
    late: Mapping[Worker, Seconds] = field(default_factory=dict[Worker, Seconds])
    """The least that it can be for each connected worker whose vector did not arrive."""


Arrivals: TypeAlias = tuple[RoundArrivals, ...]
"""Of the last rounds, the newest last."""


@dataclass(frozen=True)
class AutoDeadline:
    """Settings of a run whose deadlines set themselves; their ceiling is the deadline of its policy."""

    floor: Seconds = 5.0
    """The least deadline."""

    def __post_init__(self) -> None:
        if not 0 < self.floor < float("inf"):
            raise ValueError(f"`floor` should be a positive number of seconds. Found {self.floor}.")

    def deadline(self, arrivals: Arrivals, ceiling: Seconds, skips: int = 0) -> Seconds:
        """The deadline of a round that opens now, in whole milliseconds.

        Args:
            arrivals: what is known of the last rounds.
            ceiling: the longest deadline.
            skips: rounds in a row, up to this one, that had no update.
        """
        samples = [sample for of in arrivals for sample in (*of.seconds.values(), *of.late.values())]
        if len(arrivals) < KNOWN:
            return ceiling
        middle = median(samples)
        spread = max(NORMAL * median(abs(sample - middle) for sample in samples), LEAST_SPREAD * middle)
        longer = max(self.floor, middle + SPREADS * spread) * 2.0 ** min(skips, 64)
        return min(ceiling, round(longer, 3))


def after_round(
    arrivals: Arrivals, round: int, seconds: Mapping[Worker, Seconds], late: Mapping[Worker, Seconds]
) -> Arrivals:
    """The arrivals with those of a round that has ended; one without any leaves them as they are."""
    if not (seconds or late):
        return arrivals
    return (*arrivals, RoundArrivals(round, seconds, late))[-RECENT:]


def notice_late(arrivals: Arrivals, worker: Worker, round: int, took: Seconds) -> Arrivals:
    """The arrivals after the vector of a round has come too late; only the first of a worker counts."""
    return tuple(_with_late(of, worker, took) if of.round == round else of for of in arrivals)


def _with_late(of: RoundArrivals, worker: Worker, took: Seconds) -> RoundArrivals:
    if worker not in of.late:
        return of
    late = {name: least for name, least in of.late.items() if name != worker}
    return replace(of, seconds={**of.seconds, worker: took}, late=late)

"""Some of those who are there, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION
from varangian.server.participation.checks import check_gather, check_participants, too_many


@PARTICIPATION.register("fedavg")
@dataclass(frozen=True)
class FedAvg:
    """K of those who are there take part, and the rule runs over their vectors alone.

    "Communication-Efficient Learning of Deep Networks from Decentralized Data" (McMahan et al., 2017), with
    any rule in the place of the mean. Those are chosen whose last participation is the longest ago, as in
    `fedlaavg`, and not by chance: so everybody has a turn.
    """

    participants: int | None = None
    """K, how many are chosen for a round; null chooses all who are there."""
    gather: float = 1.0
    """Seconds after the start of a round in which more may come to be chosen from; no longer than it takes
    until every worker is accounted for."""

    def __post_init__(self) -> None:
        check_participants(self.participants)
        check_gather(self.gather)

    def problems(self, n: int, f: int) -> Iterator[Problem]:
        yield from too_many(self.participants, n)

    def answers(self, n: int, f: int) -> int:
        return n if self.participants is None else self.participants

    def quorum(self, n: int, f: int) -> int:
        return max(1, self.answers(n, f) - f)

    def rows(self, n: int, quorum: int) -> tuple[int, ...]:
        return tuple(sorted({quorum, self.answers(n, 0)}))

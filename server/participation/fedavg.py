"""Partial participation (FedAvg): K of the available workers in each round.

Workers that are not selected have no row; `fedlaavg` keeps their latest vectors instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from varangian.server.participation.base import PARTICIPATION
from varangian.server.participation.selection import SelectSome


@PARTICIPATION.register("fedavg")
@dataclass(frozen=True)
class FedAvg(SelectSome):
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

    def remedies(self, n: int) -> Mapping[str, Iterable[int]]:
        k = self.participants
        larger = {} if k is None else {self.setting("participants"): range(k + 1, n + 1)}
        return {**super().remedies(n), **larger}

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
    """Partial participation (FedAvg): K of the available workers are selected in each round.

    The rule runs over their vectors alone. "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (McMahan et al., 2017), with any rule in the place of the mean. Clients are not
    sampled at random: the workers whose last participation is the longest ago are selected, as in
    `fedlaavg`, so every worker gets a turn.
    """

    participants: int | None = None
    """K, workers selected for a round; null selects all that are available."""
    gather: float = 1.0
    """Seconds that the server collects ready workers at the start of a round before it selects; it selects
    earlier once the state of every worker is known."""

    def remedies(self, n: int) -> Mapping[str, Iterable[int]]:
        k = self.participants
        larger = {} if k is None else {self.setting("participants"): range(k + 1, n + 1)}
        return {**super().remedies(n), **larger}

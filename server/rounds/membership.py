"""Changes of members: what a coordinator changes when the workers of its run do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varangian.aggregators import Aggregator
from varangian.server.protocol.events import Members, Worker
from varangian.server.protocol.state import RunPolicy


@dataclass(frozen=True)
class MemberChange:
    """A change of the members of a run, from the next round on."""

    policy: RunPolicy
    aggregator: Aggregator
    participants: int
    """How many vectors are new in a round at most."""
    row_slots: int
    """How many vectors there can be at once."""
    gone: Mapping[Worker, str]
    """Workers that are gone with it, and how each has left."""
    expelled: frozenset[Worker]
    """Those among them of whom nothing counts any more."""
    by: Sequence[str]
    """A sentence for each thing that was asked for, with who did."""
    weights: Mapping[Worker, float] | None = None
    """What the rows of each worker weigh; None where all weigh the same."""

    def record(self, members: Members) -> dict[str, Any]:
        """What the record of the first round with it says, as JSON has it."""
        return {
            "round": members.round,
            "admitted": list(members.admitted),
            "gone": {worker: self.gone[worker] for worker in members.gone},
            "workers": list(members.workers),
            "quorum": members.quorum,
            "f": members.f,
            "by": list(self.by),
        }

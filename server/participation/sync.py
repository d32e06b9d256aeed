"""Synchronous rounds: every worker takes part in every round."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from varangian.server.participation.base import PARTICIPATION, Participation
from varangian.server.participation.selection import InvitePerRound
from varangian.server.protocol.events import Worker
from varangian.server.protocol.state import RunState


@PARTICIPATION.register("sync")
@dataclass(frozen=True)
class Sync(Participation):
    """Synchronous SGD: a round waits for every worker, until its deadline.

    All vectors of a round are made for its own model. The rule is given one row for each worker that
    answered.
    """

    def round_size(self, n: int, f: int) -> int:
        return n

    def selection(self, n: int, f: int) -> Everyone:
        return Everyone()

    def row_places(
        self, workers: Sequence[Worker], pushed: Collection[Worker], faulty: Collection[Worker]
    ) -> list[int]:
        return [i for i, worker in enumerate(workers) if worker in pushed]

    def sentence(self, n: int, f: int, quorum: int) -> str:
        spare = n - quorum
        without = f"a round can do without {spare}" if spare else "every round waits for all of them"
        return f"a quorum of {quorum} of {n} workers, of which f = {f} may be Byzantine; {without}"


@dataclass(frozen=True)
class Everyone(InvitePerRound):
    """All n workers in every round, without invitations: any worker may pull the open model."""

    by_invitation = False

    def expected(self, workers: tuple[Worker, ...], state: RunState) -> Collection[Worker]:
        return workers

    def full_size(self, n: int, round: int) -> int:
        return n

    def needed(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        return len(workers)

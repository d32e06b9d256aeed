"""Selection of participants: the parts that participations share, and K of the available workers.

n  workers     t  round     K  workers that are selected for a round
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from varangian.registry import Problem
from varangian.server.participation.base import Participation
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.state import NEVER, RunState


class InviteReady:
    """Base of a `Selection`: ready workers are invited at once, and a round takes all vectors that came."""

    by_invitation = True
    fresh_only = False

    def members(self, workers: tuple[Worker, ...], round: int) -> tuple[Worker, ...]:
        return workers

    def expected(self, workers: tuple[Worker, ...], state: RunState) -> Collection[Worker]:
        return state.invited.keys()

    def quorum(self, declared: int, full_size: int, there: int) -> int:
        return min(declared, full_size)

    def invite(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...]
    ) -> tuple[Worker, ...]:
        return ready

    def wake_at(self, state: RunState) -> Seconds | None:
        return None

    def factor(self, age: int) -> float:
        return 1.0


class InvitePerRound(InviteReady):
    """Base of a `Selection`: the vectors of a round are all made for its own model."""

    fresh_only = True

    @property
    def tau(self) -> int:
        return 0


@dataclass(frozen=True)
class LongestAbsent(InvitePerRound):
    """K of the available workers: those whose last participation is the longest ago.

    An invitation counts as participation, whatever comes of it: a worker that never answers does not keep
    its place for ever. A worker that declines, because it is away by now, has not taken part.

    The selection waits until each of the n workers asks or has said for which later round it will, since
    then it does not depend on which of them are fast; but only for `gather` seconds, and the next time not
    for the workers that were too late.
    """

    k: int
    gather: Seconds = 0.0
    """Seconds to wait, after a round has opened, for more workers to select from."""

    def full_size(self, n: int, round: int) -> int:
        return self.k

    def needed(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        if self._is_gathering(workers, state):
            return self.k
        return max(1, min(self.k, len(_invited_workers(state)) + ready))

    def quorum(self, declared: int, full_size: int, there: int) -> int:
        """As many may be silent as in a full round; a place for which no worker was there is not silent."""
        return max(1, min(declared, full_size) - max(0, full_size - there))

    def invite(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...]
    ) -> tuple[Worker, ...]:
        if self._is_gathering(workers, state):
            return ()
        # After the deadline the invited workers were silent, and any other may answer in their place.
        free = len(ready) if state.overdue else self.k - len(_invited_workers(state))
        return longest_absent(ready, state.last, max(0, free))

    def wake_at(self, state: RunState) -> Seconds | None:
        return None if state.opened_at is None or _invited_workers(state) else self._gathered_at(state)

    def _is_gathering(self, workers: tuple[Worker, ...], state: RunState) -> bool:
        early = state.opened_at is None or state.at < self._gathered_at(state)
        known = state.parked.keys() | state.given_up | state.absent
        return early and not _invited_workers(state) and len(known) < len(workers)

    def _gathered_at(self, state: RunState) -> Seconds:
        """The time until which workers are waited for; after a resumption all of them have to come back."""
        assert state.opened_at is not None
        return state.opened_at + max(self.gather, state.rejoin if state.is_first else 0.0)


def longest_absent(available: Sequence[Worker], last: Mapping[Worker, int], k: int) -> tuple[Worker, ...]:
    """The k available workers whose last participation is the longest ago, ties by name; or all there are.

    The selection of FedLaAvg, "Federated Optimization under Intermittent Client Availability" (Yan et al.,
    2023). Its Lemma 1: with each of n workers available at least once in any E rounds in a row, no last
    participation is ever more than ceil(n / k) E - 1 rounds ago.
    """
    by_age = sorted(available, key=lambda worker: (last.get(worker, NEVER), worker))
    return tuple(sorted(by_age[:k]))


def _invited_workers(state: RunState) -> set[Worker]:
    """The workers that were invited to this round and may still answer, or have."""
    return {*state.invited, *state.held, *state.faults}


class SelectSome(Participation):
    """Base of a participation in which K of the available workers take part in a round."""

    stands_as_aggregator = True
    participants: int | None
    """K; null selects all that are there."""
    gather: float
    """Seconds after the start of a round in which more workers may come to be selected from."""

    def __post_init__(self) -> None:
        if self.participants is not None and self.participants < 1:
            rule = "`participants` should be null or at least 1 worker"
            raise ValueError(f"{rule}. Found {self.participants}.")
        if not 0 <= self.gather < float("inf"):
            raise ValueError(f"`gather` should be a number of seconds, at least 0. Found {self.gather}.")

    def problems(self, n: int, f: int, deadline: Seconds) -> Iterator[Problem]:
        if self.participants is not None and self.participants > n:
            rule = f"should be at most the number of workers, {n}"
            yield Problem(self.setting("participants"), rule, self.participants)
        if self.gather >= deadline:
            rule = f"should be less than server.deadline, {deadline:g} seconds"
            yield Problem(self.setting("gather"), rule, self.gather)

    def round_size(self, n: int, f: int) -> int:
        return n if self.participants is None else self.participants

    def selection(self, n: int, f: int) -> LongestAbsent:
        return LongestAbsent(self.round_size(n, f), self.gather)

    def row_slots(self, n: int, f: int) -> int:
        """Twice the size of a round and f more, but no more than n.

        An upload may outlive its round, until the server notices that nothing comes any more. A Byzantine
        worker may hold its place for as long as a round waits, however many are invited in its stead.
        """
        return min(n, 2 * self.round_size(n, f) + f)

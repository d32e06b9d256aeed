"""Adaptive waiting: how long a round waits for those who are late, and for whom it does not wait.

Theory of operation. A round is sure to close at its deadline, if the quorum is there. Adaptive waiting
closes it sooner, by two rules. Both only choose the moment: neither lowers the quorum, f, or what the
aggregation rule asks of the rows.

1. Once enough have answered, the round waits until `factor` times as long as that took, and at least until
   `floor`, both counted from its start. Enough is the quorum, and never fewer than all but f of those who
   were asked. With f Byzantine workers that answer at once it still takes the answers of all but 2 f
   honest workers, so they cannot shorten the wait of a worker that takes no longer than `factor` times as
   long as the last of these. If the quorum of one of the last `RECENT` rounds took longer, that time
   counts: a round that happens to be quick excludes nobody.
2. A worker that has missed `rounds` rounds in a row is passed over: not waited for, though its vector
   counts if it comes in time. It is waited for again once it has answered in time, or on evidence that it
   might have: its process has connected again, or its vector is so little late that it would have been in
   time if the round had waited. Evidence is cheap, so it buys less and less: the first piece is enough, one
   a round counts, and each time that it was enough twice as many are needed the next time, up to
   `MOST_EVIDENCE`. Each answer in time halves that again.

A worker that is always slower than that would never take part again. So a patient round waits for everybody
up to the deadline: the first round of a server, since workers take their time to start, and later one in
`REST` deadlines as long as somebody has missed rounds, which costs a tenth of the time at the most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

RECENT = 8
"""Rounds whose time of a quorum is remembered."""
REST = 10
"""Deadlines between two patient rounds."""
MOST_EVIDENCE = 64
"""Pieces of evidence after which any worker is waited for again."""


@dataclass(frozen=True)
class AdaptiveWaiting:
    """Settings of a run: how long to wait once enough have answered."""

    factor: float | None = 3.0
    """Times as long as a quorum took; None waits until the deadline."""
    floor: float = 10.0
    """Seconds after the start of a round for which it waits for all workers."""
    rounds: int | None = 3
    """Rounds in a row that a worker may miss before it is not waited for; None waits for it in each."""

    def __post_init__(self) -> None:
        if self.factor is not None and not 1 <= self.factor < float("inf"):
            raise ValueError(f"`factor` should be at least 1 and finite. Found {self.factor}.")
        if not 0 <= self.floor < float("inf"):
            raise ValueError(f"`floor` should be a number of seconds, at least 0. Found {self.floor}.")
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"`rounds` should be at least 1. Found {self.rounds}.")


@dataclass(frozen=True)
class Credit:
    """The credit of a worker that was waited for again on evidence, before it answered in time."""

    needed: int = 1
    """Pieces of evidence after which it is waited for again."""
    shown: int = 0
    """Pieces of evidence since it was last waited for."""
    round: int = -1
    """The round of the last piece."""


@dataclass(frozen=True)
class WaitingHistory:
    """The history of earlier rounds that adaptive waiting needs."""

    recent: tuple[float, ...] = ()
    """Seconds that a quorum took in the last rounds, the first round of each server excepted."""
    missed: Mapping[str, int] = field(default_factory=dict[str, int])
    """Consecutive rounds that each worker has missed, of the workers that missed the last one."""
    opened_at: float | None = None
    """Time at which the last finished round was opened."""
    rested_at: float | None = None
    """Time at which the last patient round ended."""
    credit: Mapping[str, Credit] = field(default_factory=dict[str, Credit])
    """Of the workers that have shown evidence lately."""

    def span(self, waiting: AdaptiveWaiting, took: float, deadline: float) -> float:
        """Seconds that a round is open for those who are late, if its quorum took so long."""
        if waiting.factor is None:
            return deadline
        return min(deadline, max(waiting.floor, waiting.factor * max((took, *self.recent))))

    def may_be_patient(self, first: bool, opened_at: float | None, deadline: float) -> bool:
        """Whether this is the first round, or enough time has passed since the last patient one."""
        if first or opened_at is None or self.rested_at is None:
            return True
        return opened_at >= self.rested_at + REST * deadline

    def is_passed_over(self, waiting: AdaptiveWaiting, worker: str) -> bool:
        """Whether only a patient round waits for this worker, since it has missed too many."""
        return waiting.rounds is not None and self.missed.get(worker, 0) >= waiting.rounds

    def after_round(
        self,
        *,
        first: bool,
        opened_at: float | None,
        at: float,
        took: float | None,
        deadline: float,
        answered: Iterable[str],
        missing: Iterable[str],
    ) -> WaitingHistory:
        """The history with this round.

        Args:
            first: whether the server began with it.
            opened_at: when its time began.
            at: when it ended.
            took: seconds until enough had answered; None when they never had.
            deadline: in seconds, of every round.
            answered: workers that pushed, proved faulty or declined.
            missing: workers that did not answer, although they were connected and asked.
        """
        answered, missing = set(answered), set(missing)
        was_patient = first or any(worker in self.missed for worker in answered | missing)
        patient = was_patient and self.may_be_patient(first, opened_at, deadline)
        left = {worker: count for worker, count in self.missed.items() if worker not in answered}
        known = took is not None and not first  # the first includes the start of the workers
        return replace(
            self,
            recent=(*self.recent, took)[-RECENT:] if known and took is not None else self.recent,
            missed={**left, **{worker: left.get(worker, 0) + 1 for worker in missing}},
            opened_at=opened_at,
            rested_at=at if patient else self.rested_at,
            credit=self._after_answers(answered) if self.credit else self.credit,
        )

    def without_connections(self) -> WaitingHistory:
        """The history for another process of the server: spans last, and all workers connect anew."""
        return replace(self, missed={}, opened_at=None, rested_at=None)

    def notice_return(self, worker: str, round: int) -> WaitingHistory:
        """The history after a process of the worker has connected again, in this round."""
        return self._with_evidence(worker, round) if worker in self.missed else self

    def notice_late(
        self, waiting: AdaptiveWaiting, worker: str, round: int, took: float, deadline: float
    ) -> WaitingHistory:
        """The history after a late vector: evidence if this round could have waited for it."""
        late = not self.is_passed_over(waiting, worker) or took > self.span(waiting, 0.0, deadline)
        return self if late else self._with_evidence(worker, round)

    def _with_evidence(self, worker: str, round: int) -> WaitingHistory:
        """The history after evidence; once there is enough, without the rounds that were missed."""
        before = self.credit.get(worker, Credit())
        if round <= before.round:
            return self
        shown, kept = before.shown + 1, self.missed
        after = Credit(before.needed, shown, round)
        if shown >= before.needed:
            after = Credit(min(2 * before.needed, MOST_EVIDENCE), 0, round)
            kept = {name: count for name, count in kept.items() if name != worker}
        return replace(self, missed=kept, credit={**self.credit, worker: after})

    def _after_answers(self, answered: Collection[str]) -> dict[str, Credit]:
        """The credit of all workers after these have answered in time."""
        credit = dict(self.credit)
        for worker in credit.keys() & answered:
            before = credit.pop(worker)
            if before.needed > 2:
                credit[worker] = Credit(before.needed // 2, 0, before.round)
        return credit


def is_patient(
    history: WaitingHistory, first: bool, opened_at: float | None, deadline: float, silent: Collection[str]
) -> bool:
    """Whether a round waits for everybody up to its deadline; `silent` are those who may still answer."""
    missed = first or not history.missed.keys().isdisjoint(silent)
    return missed and history.may_be_patient(first, opened_at, deadline)

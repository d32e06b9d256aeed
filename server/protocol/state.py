"""Policy and state of partial participation, and what a choice of participants has to offer.

`machine` says how these fit together. All of it is plain data: no clock, no tensor, no wire.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from varangian.server.protocol.adaptive_waiting import WaitingHistory
from varangian.server.protocol.events import Close, Phase, RoundPolicy, Seconds, Worker

Vector: TypeAlias = tuple[int, bytes]
"""The round whose model it was made for, and its digest: the number of a push, exactly once."""

NEVER = -1
"""The round of the last participation of a worker that never took part."""


@dataclass(frozen=True)
class RunState:
    """All that is remembered."""

    round: int = 0
    phase: Phase = Phase.OPEN
    at: Seconds = float("-inf")
    """When the last event was."""
    opened_at: Seconds | None = None
    """None until the first worker of round 0 shows up."""
    overdue: bool = False
    """Whether the deadline has passed and the policy is to wait."""
    skips: int = 0
    """Rounds in a row, up to this one, that had no update."""
    reason: str = ""
    """Why the run is finished."""
    quorum_took: Seconds | None = None
    """Until enough had answered this round for the adaptive wait to begin."""
    pace: WaitingHistory = field(default_factory=WaitingHistory)
    """What is remembered of the rounds before."""
    asked: Mapping[Worker, tuple[int, Seconds]] = field(default_factory=dict[Worker, tuple[int, Seconds]])
    """The last invitation of each worker: its round, and when it was."""
    took: Mapping[Worker, Seconds] = field(default_factory=dict[Worker, Seconds])
    """From its invitation to its vector, of each worker whose vector is held."""
    parked: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Workers that wait for an invitation, and the first round that they would answer."""
    invited: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Workers that have a model, of this round, and whose vector for it may still come and count."""
    uploads: Mapping[Worker, Vector] = field(default_factory=dict[Worker, Vector])
    """Open ones, also those that are too old to count; of some the digest comes at the end."""
    held: Mapping[Worker, Vector] = field(default_factory=dict[Worker, Vector])
    """Vectors that are there and not used yet, one of each worker."""
    closed: Close | None = None
    """How the round was closed that is being aggregated."""
    used: Mapping[Worker, Vector] = field(default_factory=dict[Worker, Vector])
    """The last vector of each worker that is held no more: it was used, or is too old by now."""
    faults: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Who proved faulty in this round, and by what."""
    declined: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Who had nothing to send in this round, and why; while it is being aggregated, in the next."""
    absent: frozenset[Worker] = frozenset()
    """Workers without a process that is connected."""
    revoked: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers whose certificate was revoked and that have not come back with another one, and why."""
    accused: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Who proved faulty while the round was being aggregated: it counts in the next."""
    last: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """The round of the latest invitation of each worker that it did not decline."""
    before: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """What `last` was before, of each worker that may still decline."""
    given_up: frozenset[Worker] = frozenset()
    """Who had not asked when those who had were chosen from: not waited for until it asks again."""

    @property
    def taken(self) -> tuple[Worker, ...]:
        """Whose held vector is being aggregated."""
        return () if self.closed is None else self.closed.workers

    @property
    def pushed(self) -> dict[Worker, bytes]:
        return {worker: digest for worker, (_, digest) in self.held.items()}


class Selection(Protocol):
    """Who is invited, whose vectors a round reduces over, and how old they may be."""

    @property
    def tau(self) -> int | None:
        """How many rounds a vector may be old when it is used; None for any age."""
        ...

    @property
    def by_invitation(self) -> bool:
        """Whether a worker gets a model when it is invited; otherwise whenever it asks, the open one."""
        ...

    @property
    def prompt(self) -> bool:
        """Whether nobody can answer a round but those whom it has invited itself."""
        ...

    def problem(self, n: int, deadline: Seconds, /) -> str | None:
        """Why n workers cannot be chosen from like this; None when they can."""
        ...

    def members(self, workers: tuple[Worker, ...], round: int, /) -> tuple[Worker, ...]:
        """Whose vectors the round reduces over, as far as they are there; sorted."""
        ...

    def expected(self, workers: tuple[Worker, ...], state: RunState, /) -> Collection[Worker]:
        """Who is missing from the open round, unless it has answered."""
        ...

    def seats(self, n: int, round: int, /) -> int:
        """How many answers a full round has."""
        ...

    def wanted(self, workers: tuple[Worker, ...], state: RunState, ready: int, /) -> int:
        """After how many answers the round is complete: fewer than its seats if nobody takes them."""
        ...

    def quorum(self, declared: int, seats: int, there: int, /) -> int:
        """The fewest answers to close at the deadline with, where so many could answer at the most.

        Asked only for a quorum that nobody set.
        """
        ...

    def next(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...], /
    ) -> tuple[Worker, ...]:
        """Whom of those that are ready to invite now; their names are sorted."""
        ...

    def wake_at(self, state: RunState, /) -> Seconds | None:
        """When time alone makes a difference to `next` or `wanted`, or made one."""
        ...

    def factor(self, age: int, /) -> float:
        """What a vector counts at this age."""
        ...


@dataclass(frozen=True)
class RunPolicy(RoundPolicy):
    """What a run agreed on before its first round.

    `quorum` is how many must have answered for a full round to close at its deadline. Unless it is `fixed`,
    that is all of a round that has fewer seats, and one less for each seat that nobody was there to take,
    but at least one; and whatever the quorum, no round closes that `requires` has a word against.
    """

    choice: Selection = field(kw_only=True)
    fixed: bool = field(default=False, kw_only=True)
    """Whether the quorum was asked for: then it is the same in every round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if problem := self.choice.problem(len(self.workers), self.deadline):
            raise ValueError(problem)

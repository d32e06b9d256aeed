"""The vocabulary of participation: who may push for which model, what can happen, what follows.

`participation` says how these fit together. All of it is plain data: no clock, no tensor, no wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

from varangian.server.events import Seconds, Tick, Worker


@dataclass(frozen=True)
class Participation:
    """All that is remembered."""

    round: int = 0
    at: Seconds = float("-inf")
    """When the last event was."""
    opened_at: Seconds | None = None
    """None until the first worker of round 0 shows up."""
    reducing: bool = False
    """Whether the round is closed, and somebody aggregates."""
    parked: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Workers that wait for an invitation, and the first round that they would answer."""
    invited: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Workers that were invited and have not answered, and the round whose model they were given.

    Also those who are too late by now: they are told so.
    """
    arrived: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Whose vector waits to be aggregated, one for each, and the round whose model it was made for."""
    faulty: frozenset[Worker] = frozenset()
    """Who answered the open round with what no honest worker sends."""
    taken: frozenset[Worker] = frozenset()
    """Whose vector is being aggregated."""
    last: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """The round of the latest invitation of each worker."""


class Choice(Protocol):
    """Who is invited to a round."""

    @property
    def tau(self) -> int:
        """How many rounds an invitation outlives its own: 0 where every round has its own model."""
        ...

    def problem(self, n: int, /) -> str | None:
        """Why n workers cannot be chosen from like this; None when they can."""
        ...

    def wanted(self, workers: tuple[Worker, ...], round: int, /) -> int:
        """After how many answers the round is complete."""
        ...

    def next(
        self, workers: tuple[Worker, ...], state: Participation, ready: tuple[Worker, ...], at: Seconds, /
    ) -> tuple[Worker, ...]:
        """Whom of those that are ready to invite now; their names are sorted."""
        ...

    def wake_at(self, state: Participation, /) -> Seconds | None:
        """When time alone makes a difference to `next`, or made one."""
        ...

    def factor(self, age: int, /) -> float:
        """What a vector counts at this age."""
        ...


@dataclass(frozen=True)
class ParticipationPolicy:
    """What a run agreed on before its first round."""

    workers: tuple[Worker, ...]
    choice: Choice
    deadline: Seconds | None = None
    """After how long a round closes with the answers that there are; None to wait until all are there."""
    quorum: int = 1
    """The fewest answers with which a round closes at its deadline."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", tuple(sorted(self.workers)))
        n = len(self.workers)
        if n == 0 or len(set(self.workers)) < n:
            raise ValueError(f"`workers` should be different names, at least one. Found {self.workers}.")
        if problem := self.choice.problem(n):
            raise ValueError(problem)
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"`deadline` should be a positive number of seconds. Found {self.deadline}.")
        if not 1 <= self.quorum <= n:
            raise ValueError(f"`quorum` should be between 1 and n = {n}. Found {self.quorum}.")


class Unwelcome(Enum):
    """Why a push was turned away. The name is the stable code, the value the sentence sent back."""

    UNKNOWN_WORKER = "This name is not one of the workers of the run."
    NOT_INVITED = "This worker was not invited to push for this round; pull, and wait to be."
    TOO_OLD = "The model that this vector was made for is too old by now; pull the current one."


@dataclass(frozen=True)
class Ready:
    """A worker asks for a model, and waits: its pull is parked."""

    worker: Worker
    round: int
    """The first that it would answer."""
    at: Seconds


@dataclass(frozen=True)
class Left:
    """Nobody is there any more who could answer, or whose pull could be answered."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Began:
    """A push begins."""

    worker: Worker
    round: int
    """Whose model it was made for; as in the following two."""
    at: Seconds


@dataclass(frozen=True)
class Arrived:
    """A push is complete, and its vector is sound."""

    worker: Worker
    round: int
    at: Seconds


@dataclass(frozen=True)
class Faulty:
    """A push that no honest worker makes."""

    worker: Worker
    round: int
    at: Seconds


@dataclass(frozen=True)
class Closed:
    """Somebody else decided that the open round is over."""

    round: int
    at: Seconds


@dataclass(frozen=True)
class Opened:
    """The round before is aggregated, or given up, and there is a model for this one."""

    round: int
    at: Seconds


Event: TypeAlias = Ready | Left | Began | Arrived | Faulty | Closed | Opened | Tick


@dataclass(frozen=True)
class Invite:
    """Answer the worker's pull with the model of this round."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Admit:
    """The push may go on."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class TurnAway:
    """The push is refused; nothing has changed."""

    worker: Worker
    code: Unwelcome
    round: int
    """The open one."""


@dataclass(frozen=True)
class Arrival:
    """A vector that takes part."""

    worker: Worker
    age: int
    """In rounds, of the model that it was made for."""
    factor: float
    """What it counts at this age."""


@dataclass(frozen=True)
class Reduce:
    """Aggregate these, then report `Opened` of the next round."""

    round: int
    arrivals: tuple[Arrival, ...]
    """Sorted by name."""
    faulty: tuple[Worker, ...]
    because: str


Effect: TypeAlias = Invite | Admit | TurnAway | Reduce

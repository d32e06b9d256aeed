"""Policy and state of a run, and what a selection of participants has to offer, as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import Any, Final, Literal, Protocol, TypeAlias

from pydantic import ConfigDict, TypeAdapter

from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting, WaitingHistory
from varangian.server.protocol.deadlines import Arrivals, AutoDeadline
from varangian.server.protocol.events import Close, Seconds, Worker

Vector: TypeAlias = tuple[int, bytes]
"""The round whose model it was made for, and its digest: together they number a push, exactly once."""
Condition: TypeAlias = Callable[[Collection[Worker], Collection[Worker]], str | None]
"""Of the workers whose vectors would count and of those that are proven faulty: why the aggregation rule
promises nothing for these rows; None when its condition holds."""

NEVER = -1
"""The round of the last participation of a worker that never took part."""
VOID: Final = b"void"
"""In the place of the digest of an upload that was withdrawn. No digest is that short."""


class Phase(Enum):
    OPEN = auto()
    CLOSED = auto()
    FINISHED = auto()


@dataclass(frozen=True)
class RunState:
    """The state of a run, as the machine remembers it. Only the machine replaces it."""

    __pydantic_config__ = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
    )
    round: int = 0
    first: int = 0
    """The round that this process of the server began with: workers take their time to connect."""
    rejoin: Seconds = 0.0
    """Seconds for which the first selection after a resumption waits for workers to come back."""
    phase: Phase = Phase.OPEN
    at: Seconds = float("-inf")
    """Time of the last event."""
    opened_at: Seconds | None = None
    """None until the first worker of the first round shows up."""
    deadline: Seconds | None = None
    """Seconds until the deadline of this round, if it was set by itself; None for that of the policy."""
    arrivals: Arrivals = ()
    """Of the last rounds, if deadlines set themselves."""
    overdue: bool = False
    """Whether the deadline has passed and the policy is to wait."""
    skips: int = 0
    """Rounds in a row, up to this one, that had no update."""
    reason: str = ""
    """The reason why the run is finished."""
    quorum_took: Seconds | None = None
    """Until enough had answered this round for the adaptive wait to begin."""
    history: WaitingHistory = field(default_factory=WaitingHistory)
    """The history of earlier rounds for adaptive waiting."""
    asked: Mapping[Worker, tuple[int, Seconds]] = field(default_factory=dict[Worker, tuple[int, Seconds]])
    """The last invitation of each worker: its round, and when it was."""
    took: Mapping[Worker, Seconds] = field(default_factory=dict[Worker, Seconds])
    """From its invitation, or else the start of the round, to its vector, of each worker with one here."""
    parked: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Workers that wait for an invitation, and the first round that they would answer."""
    invited: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """Workers that have a model, of this round, and whose vector for it may still come and count."""
    uploads: Mapping[Worker, Vector] = field(default_factory=dict[Worker, Vector])
    """Open ones, also those that are too old to count; of some the digest comes at the end."""
    held: Mapping[Worker, Vector] = field(default_factory=dict[Worker, Vector])
    """Vectors that are there and not used yet, one of each worker."""
    closed: Close | None = None
    """The closing of the round that is being aggregated."""
    used: Mapping[Worker, Vector] = field(default_factory=dict[Worker, Vector])
    """The last vector of each invited worker that is held no more: it was used, or is too old by now."""
    faults: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers proven faulty in this round, with the refusal."""
    declined: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers that declined this round, with the reason; while it is being aggregated, in the next."""
    absent: frozenset[Worker] = frozenset()
    """Workers without a process that is connected."""
    revoked: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers whose certificate was revoked and that have not come back with another one, and why."""
    accused: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers proven faulty while the round was being aggregated: they count in the next."""
    last: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """The round of the latest invitation of each worker that it did not decline."""
    before: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """The earlier value of `last` of each worker that may still decline."""
    given_up: frozenset[Worker] = frozenset()
    """Workers that had not asked at the last selection: not waited for until they ask again."""

    def replace(self, **changes: Any) -> RunState:
        """The state with other values of these fields.

        As `dataclasses.replace`, without a call of the constructor: each event does this several times.
        """
        values = {**self.__dict__, **changes}
        if len(values) > len(self.__dict__):
            raise TypeError(f"A state has no {', '.join(sorted(changes.keys() - self.__dict__.keys()))}.")
        replaced = object.__new__(RunState)
        object.__setattr__(replaced, "__dict__", values)
        return replaced

    @property
    def is_first(self) -> bool:
        """Whether this process of the server began with the round."""
        return self.round == self.first

    @property
    def taken(self) -> tuple[Worker, ...]:
        """Workers whose held vector is being aggregated."""
        return () if self.closed is None else self.closed.workers

    @property
    def pushed(self) -> dict[Worker, bytes]:
        """Digests of the vectors that are there: they wait for their round, or are being aggregated."""
        return {worker: digest for worker, (_, digest) in self.held.items()}

    def has_withdrawn_upload(self, worker: Worker) -> bool:
        """Whether an upload of this worker is open that cannot count since its certificate was revoked."""
        return self.uploads.get(worker, (0, b""))[1] == VOID


def dump_state(state: RunState) -> dict[str, Any]:
    """The state as a checkpoint keeps it: what JSON has, with constants for infinite numbers."""
    plain: dict[str, Any] = json.loads(_adapter().dump_json(state))
    return plain


def restore_state(plain: Mapping[str, Any]) -> RunState:
    """A state from what `dump_state` made of it.

    Raises:
        ValueError: it is no such state.
    """
    return _adapter().validate_json(json.dumps(plain))


@cache
def _adapter() -> TypeAdapter[RunState]:
    return TypeAdapter(RunState)


class Selection(Protocol):
    """The selection of workers: who takes part in a round, and how old vectors may be."""

    @property
    def by_invitation(self) -> bool:
        """Whether only invited workers get a model.

        Otherwise whoever asks gets that of the open round and may push for it, `invite` is not asked, and
        a vector counts in its own round alone.
        """
        ...

    @property
    def tau(self) -> int | None:
        """Maximum staleness in rounds when a vector is used; None for any age."""
        ...

    @property
    def fresh_only(self) -> bool:
        """Whether only workers that a round has invited itself can answer it."""
        ...

    def members(self, workers: tuple[Worker, ...], round: int, /) -> tuple[Worker, ...]:
        """Workers whose vectors the round reduces over, as far as they have arrived; sorted."""
        ...

    def expected(self, workers: tuple[Worker, ...], state: RunState, /) -> Collection[Worker]:
        """Workers that are missing from the open round unless they have answered."""
        ...

    def full_size(self, n: int, round: int, /) -> int:
        """The number of answers of a full round."""
        ...

    def needed(self, workers: tuple[Worker, ...], state: RunState, ready: int, /) -> int:
        """The number of answers of a complete round: fewer than its full size if fewer are available."""
        ...

    def quorum(self, declared: int, full_size: int, there: int, /) -> int:
        """The fewest answers to close at the deadline with, where so many could answer at the most.

        Asked only for a quorum that nobody set.
        """
        ...

    def invite(
        self, workers: tuple[Worker, ...], state: RunState, ready: tuple[Worker, ...], /
    ) -> tuple[Worker, ...]:
        """The ready workers to invite now; the names given are sorted."""
        ...

    def wake_at(self, state: RunState, /) -> Seconds | None:
        """The time at which `invite` or `needed` change by time alone, or did."""
        ...

    def factor(self, age: int, /) -> float:
        """The staleness weight at this age."""
        ...


def unconditional(pushed: Collection[Worker], faulty: Collection[Worker]) -> str | None:
    """The condition of a rule that takes any rows."""
    return None


@dataclass(frozen=True)
class RunPolicy:
    """The settings of a run that the protocol needs; workers, quorum and f may change between two rounds.

    `quorum` is how many must have answered for a full round to close at its deadline. Unless it is `fixed`,
    that is all of a round that is smaller, and one less for each place that no worker was there to take,
    but at least one; and whatever the quorum, no round closes whose rows do not meet `requires`.
    """

    workers: tuple[Worker, ...]
    rounds: int
    quorum: int
    """The fewest answers with which a round closes at its deadline."""
    deadline: Seconds
    """Seconds for which a round stays open; if deadlines set themselves, the longest."""
    shortfall: Literal["wait", "skip", "fail"]
    """The action at the deadline when the quorum is not met."""
    f: int
    """The number of workers that may be Byzantine."""
    max_skips: int = 10
    """After so many rounds in a row without an update the run is over: nothing loops for ever."""
    requires: Condition = unconditional
    """The condition of the rule on the rows of a round; no round closes without it."""
    waiting: AdaptiveWaiting | None = None
    """Adaptive waiting, which closes a round before its deadline; None for no such thing."""
    auto: AutoDeadline | None = field(default=None, kw_only=True)
    """How deadlines set themselves; None if `deadline` is that of every round."""
    selection: Selection = field(kw_only=True)
    fixed: bool = field(default=False, kw_only=True)
    """Whether the quorum was asked for: then it is the same in every round."""
    first: int = field(default=0, kw_only=True)
    """The first round of which these are the settings."""
    following: RunPolicy | None = field(default=None, kw_only=True)
    """The settings from a later round on, with other workers; None if no change is to come."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", tuple(sorted(self.workers)))
        n = len(self.workers)
        if n == 0 or len(set(self.workers)) < n:
            raise ValueError(f"`workers` should be different names, at least one. Found {self.workers}.")
        if self.f < 0:
            raise ValueError(f"`f` should be a non-negative integer. Found {self.f}.")
        if not 1 <= self.quorum <= n:
            raise ValueError(f"`quorum` should be between 1 and n = {n}. Found {self.quorum}.")
        if not 0 <= self.f < n:
            raise ValueError(f"`f` should be between 0 and n - 1 = {n - 1}. Found {self.f}.")
        if min(self.rounds, self.max_skips) < 1:
            found = f"{self.rounds} and {self.max_skips}"
            raise ValueError(f"`rounds` and `max_skips` should be at least 1. Found {found}.")
        if not self.deadline > 0:
            raise ValueError(f"`deadline` should be a positive number of seconds. Found {self.deadline}.")
        if self.auto is not None and self.auto.floor > self.deadline:
            found = f"{self.auto.floor} and {self.deadline}"
            raise ValueError(f"The floor of deadlines should be at most their ceiling. Found {found}.")

    @property
    def by_invitation(self) -> bool:
        """True if only invited workers get a model; decided by the selection."""
        return self.selection.by_invitation

    @property
    def leaving(self) -> frozenset[Worker]:
        """Workers that are gone with the next round."""
        following = self.following
        return frozenset() if following is None else frozenset(self.workers).difference(following.workers)

    def at(self, round: int) -> RunPolicy:
        """The settings of a round."""
        following = self.following
        return self if following is None or round < following.first else following

    def deadline_of(self, state: RunState) -> Seconds:
        """Seconds from the start of the current round to its deadline."""
        return self.deadline if state.deadline is None else state.deadline

    def spare(self, asked: int, quorum: int) -> int:
        """Workers that may be missing from a round that ends before its deadline.

        As many as the quorum leaves, but never more than f: so the first answers alone decide nothing. With
        f = 0 nobody is Byzantine, and the quorum alone says.
        """
        left = max(0, asked - quorum)
        return min(left, self.f) if self.f else left

    def shortage(
        self, pushed: Collection[Worker], faulty: Collection[Worker], quorum: int | None = None
    ) -> str:
        """The reason why a round cannot be aggregated, as the end of a sentence; empty if it can.

        A proven fault counts for the quorum: the rule has one row less, and one Byzantine row less.
        """
        quorum = self.quorum if quorum is None else quorum
        if len(pushed) + len(faulty) < quorum:
            return f"the quorum of {quorum} is not met"
        if not pushed:
            return "there is no vector to aggregate"
        reason = self.requires(pushed, faulty)
        return f"the rule promises nothing for these rows: {reason.rstrip('.')}" if reason else ""

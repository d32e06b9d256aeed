"""Events and effects of the protocol, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from varangian.protos.refusals import Refusal

Worker: TypeAlias = str
Seconds: TypeAlias = float


@dataclass(frozen=True)
class Offer:
    """An upload begins. Its digest is empty when only its end will tell."""

    worker: Worker
    round: int
    digest: bytes
    at: Seconds


@dataclass(frozen=True)
class Push:
    """The upload is complete, and its vector is sound."""

    worker: Worker
    round: int
    digest: bytes
    at: Seconds


@dataclass(frozen=True)
class Settled:
    """These uploads are complete and sound, all at once; no other can count in this round any more."""

    round: int
    digests: Mapping[Worker, bytes]
    at: Seconds


@dataclass(frozen=True)
class Fault:
    """The worker sent what no honest program sends: a proven fault."""

    worker: Worker
    round: int
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Decline:
    """The worker has nothing to send in this round; that proves nothing."""

    worker: Worker
    round: int
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Gone:
    """The upload of this round has ended without a push; its memory is no longer written to."""

    worker: Worker
    round: int
    at: Seconds


@dataclass(frozen=True)
class Tick:
    """Time has passed; due at `wake_at`."""

    at: Seconds


@dataclass(frozen=True)
class Committed:
    """The closed round has become an update."""

    round: int
    at: Seconds


@dataclass(frozen=True)
class Skipped:
    """The closed round could not become an update."""

    round: int
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Stop:
    """The operator ends the run, or an error of the server does."""

    reason: str
    at: Seconds


@dataclass(frozen=True)
class Ready:
    """A worker asks for a model, and waits: its pull is parked."""

    worker: Worker
    round: int
    """The first that it would answer."""
    at: Seconds


@dataclass(frozen=True)
class Left:
    """The pull of a worker has ended without an answer."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Absent:
    """No process of this worker is connected: a round whose quorum is met does not wait for it."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Present:
    """A process of this worker has connected: rounds wait for it as for the others."""

    worker: Worker
    at: Seconds


@dataclass(frozen=True)
class Withdraw:
    """This worker was expelled, or its certificate revoked: nothing of it that is not used yet counts."""

    worker: Worker
    reason: str
    at: Seconds


@dataclass(frozen=True)
class Drain:
    """This worker leaves with the open round: its vector of that counts, and it is asked no more."""

    worker: Worker
    at: Seconds


Event: TypeAlias = (
    Offer
    | Push
    | Settled
    | Fault
    | Decline
    | Gone
    | Tick
    | Committed
    | Skipped
    | Stop
    | Ready
    | Left
    | Absent
    | Present
    | Withdraw
    | Drain
)


@dataclass(frozen=True)
class Accept:
    """The upload may begin, or the push counts."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Duplicate:
    """The same push counts already: the worker is told that it does."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Reject:
    refusal: Refusal
    round: int
    """The current round, for whoever asked about another."""


@dataclass(frozen=True)
class RollCall:
    """The outcome of a round: who answered, and why it ended. Names are sorted."""

    round: int
    workers: tuple[Worker, ...]
    """Workers whose push counts."""
    faults: Mapping[Worker, str]
    """Workers proven faulty, with the refusal."""
    missing: tuple[Worker, ...]
    waited: Seconds
    """Seconds for which the round was open."""
    because: str
    declined: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Workers that declined, with the reason."""
    revoked: tuple[Worker, ...] = ()
    """Workers left out because their certificate was revoked; not among the missing."""
    not_waited_for: Mapping[Worker, str] = field(default_factory=dict[Worker, str])
    """Missing workers that were not waited for, with the reason; the others were, in vain."""
    deadline: Seconds | None = None
    """The deadline of the round if it was set by itself."""
    quorum_after: Seconds | None = None
    """From the start of the round until its quorum had answered; None if it had not."""


@dataclass(frozen=True)
class Close(RollCall):
    """Aggregate these pushes, then report `Committed` or `Skipped`."""

    ages: Mapping[Worker, int] = field(default_factory=dict[Worker, int])
    """In rounds, of the models that the vectors were made for; empty where all are made for this one."""
    factors: Mapping[Worker, float] = field(default_factory=dict[Worker, float])
    """The staleness weight of each vector; empty where all count alike."""


@dataclass(frozen=True)
class Skip(RollCall):
    """Skip the round: it has no update."""


@dataclass(frozen=True)
class Open:
    round: int


@dataclass(frozen=True)
class Invite:
    """Answer the worker's pull with the model of this round, which is the open one."""

    worker: Worker
    round: int


@dataclass(frozen=True)
class Finish:
    reason: str


@dataclass(frozen=True)
class Forget:
    """Forget every vector of this worker that is kept for later rounds, after the rounds closed so far."""

    worker: Worker


@dataclass(frozen=True)
class Members:
    """From this round on these are the workers of the run; `Open` follows."""

    round: int
    admitted: tuple[Worker, ...]
    gone: tuple[Worker, ...]
    workers: tuple[Worker, ...]
    """All of them, sorted."""
    quorum: int
    f: int


Effect: TypeAlias = Accept | Duplicate | Reject | Close | Skip | Open | Invite | Finish | Forget | Members

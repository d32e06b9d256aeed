"""Interface of the two machines that decide about a run, as a driver sees them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple, Protocol

from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Effect, Event, Phase, RoundPolicy, Seconds, Worker


class Verdict(Enum):
    WAIT = auto()
    CLOSE = auto()
    SHORT = auto()


class Decision(NamedTuple):
    verdict: Verdict
    because: str


class State(Protocol):
    """What everybody may look at; nobody but the machine replaces it."""

    @property
    def round(self) -> int: ...

    @property
    def phase(self) -> Phase: ...

    @property
    def opened_at(self) -> Seconds | None:
        """None until the first worker of round 0 shows up."""
        ...

    @property
    def reason(self) -> str:
        """Why the run is finished, or nothing."""
        ...

    @property
    def uploads(self) -> Mapping[Worker, tuple[int, bytes]]:
        """Open ones: the round whose model the vector was made for, and its digest."""
        ...

    @property
    def pushed(self) -> Mapping[Worker, bytes]:
        """Digests of the vectors that are there: they wait for their round, or are being aggregated."""
        ...

    @property
    def faults(self) -> Mapping[Worker, str]:
        """Who proved faulty in this round, and by what."""
        ...

    @property
    def declined(self) -> Mapping[Worker, str]:
        """Who has nothing to send in this round, and why."""
        ...

    @property
    def revoked(self) -> Mapping[Worker, str]:
        """Whose certificate was revoked and who has not come back with another one, and why."""
        ...

    @property
    def absent(self) -> frozenset[Worker]:
        """Who has no process that is connected."""
        ...


class Machine(Protocol):
    """The protocol of one run, without any I/O. `handle` is the only way to change it."""

    @property
    def policy(self) -> RoundPolicy: ...

    @property
    def state(self) -> State: ...

    @property
    def invites(self) -> bool:
        """Whether only those get a model who are invited: a pull is a `Ready`, its answer an `Invite`."""
        ...

    @property
    def wake_at(self) -> Seconds | None:
        """When the next `Tick` is due; None when nothing depends on time."""
        ...

    def handle(self, event: Event, /) -> tuple[Effect, ...]:
        """Move, and say what follows. The answer to a worker comes first."""
        ...

    def decision(self, at: Seconds, /) -> Decision:
        """What the open round is waiting for, as a sentence."""
        ...

    def standing(self, worker: Worker, round: int, /) -> Refusal | None:
        """Why a vector of this worker, made for the model of this round, would not count any more."""
        ...

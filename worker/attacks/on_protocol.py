"""The interface of an attack on the protocol: a vector that is sent otherwise than the protocol says.

The attack decides what is sent, when, and on how many connections; a `Line` sends it. Of the server it
learns what any worker learns: the answer to each push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Push:
    """A push as it goes over the wire: the fields of its manifest, which may lie, and its payload."""

    round: int
    payload: bytes
    """The numbers of the vector, one after the other."""
    numel: int
    """How many numbers the manifest says there are."""
    dtype: int
    """Number of the type that the manifest says they have."""
    layout: bytes
    """Digest of the names and shapes of the model's parameters."""
    digest: bytes
    """Digest of the payload."""


@dataclass(frozen=True)
class Answer:
    """The answer of the server to one push."""

    code: str = ""
    """Code of the refusal; the name of a gRPC status where the line broke; empty if the push was taken."""
    sentence: str = ""
    repeat: bool = False
    """Whether the server had counted this very push before."""

    @property
    def counted(self) -> bool:
        """Whether the server counts the vector."""
        return not self.code


class Line(Protocol):
    """The line of one worker to its server, for a worker that does not keep to the protocol.

    Nothing that the server or the network does is an error of these methods: it is in the answer.
    """

    @property
    def memory(self) -> dict[str, Any]:
        """The memory of the attack from round to round, of this worker; it may write to it."""
        ...

    def prepare(self, round: int, vector: Tensor) -> Push:
        """The push that an honest worker would send."""
        ...

    async def send(self, push: Push, *, rate: float | None = None, share: float = 1.0) -> Answer:
        """Send a push.

        Args:
            push: sent as it is, whether it is true or not.
            rate: bytes per second; None is as fast as the line takes them.
            share: the part of the payload after which the connection is cut.
        """
        ...

    async def send_together(self, pushes: Sequence[Push]) -> list[Answer]:
        """Send several pushes at the same time, each on a connection of its own."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait."""
        ...

    async def leave(self) -> None:
        """Hang up: to the server the process of this worker has ended."""
        ...

    async def join(self, *, anew: bool = False) -> int:
        """Connect and join, after `leave`; returns the round that the server is in.

        Args:
            anew: as another process, as after a crash; the name is free two seconds after the first left.
        """
        ...


@runtime_checkable
class ProtocolAttack(Protocol):
    """An attack on the protocol; it needs real connections, which a simulation has not."""

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator, /) -> None:
        """Take the place of the push of one round.

        Args:
            line: to the server.
            round: whose model the vector was computed for.
            vector: (d,) what an honest worker would push, or another attack, that in the field `attack`
                where there is one; not to be written to.
            rng: of this attacker in this round.
        """
        ...


def check_every(every: int) -> None:
    """Check the field `every` of an attack, in `__post_init__`.

    Raises:
        ValueError: it is not a positive number of rounds.
    """
    if every < 1:
        raise ValueError(f"`every` should be at least 1. Found {every}.")


def is_due(round: int, every: int) -> bool:
    """Whether an attack that comes every so many rounds comes in this one; the first one is `every` - 1."""
    return (round + 1) % every == 0

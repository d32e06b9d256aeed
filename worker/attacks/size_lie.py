"""Size lie: a payload that is not what its manifest promises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, Push, check_every, is_due


@ATTACKS.register("size_lie")
@dataclass(frozen=True)
class SizeLie:
    """Size lie: fewer or more bytes than the manifest promises, or others than its digest is of.

    The server never passes a size from the wire to an allocator, and reads no more than the model has.
    On a data connection, where no size is sent, more bytes are never read, and the vector counts.

    Vector: g in fewer or more bytes than announced, or with a wrong digest.
    Source: no paper.
    """

    what: Literal["fewer", "more", "digest"] = "fewer"
    """The mismatch: there are too few bytes, too many, or they have another digest."""
    amount: int = 4
    """Bytes that are missing or too many."""
    every: int = 1
    """Attack in every so many rounds; push as an honest worker does in the others."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        check_every(self.every)
        if self.amount < 1:
            raise ValueError(f"`amount` should be at least 1 byte. Found {self.amount}.")

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        push = line.prepare(round, vector)
        await line.send(self._lie(push) if is_due(round, self.every) else push)

    def _lie(self, push: Push) -> Push:
        match self.what:
            case "fewer":
                return replace(push, payload=push.payload[: -self.amount])
            case "more":
                return replace(push, payload=push.payload + bytes(self.amount))
            case "digest":
                return replace(push, digest=bytes(byte ^ 0xFF for byte in push.digest))

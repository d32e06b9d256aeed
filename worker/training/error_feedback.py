"""Error feedback: deltas between vectors, and what rounding took from them added to the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from varangian.protos.payloads.encoding import FLOAT32, Dtype, Encoding, rounding_seed
from varangian.state_file import Tree

Received: TypeAlias = Callable[[str, int, Tensor], Tensor]
"""From a worker, a round and a delta to the delta (d,) float32 as the server reads it."""


def describe_deltas(wire: Dtype) -> str:
    """What workers push, as both ends compare it: a worker has to know how its deltas are rounded."""
    return "deltas" if wire == FLOAT32 else f"deltas in {wire}"


def as_received(dtype: Dtype) -> Received:
    """Deltas as they are read from a wire of this type."""

    def received(name: str, round: int, delta: Tensor) -> Tensor:
        if dtype == FLOAT32:
            return delta
        encoding = Encoding(delta.numel(), dtype)
        return encoding.decode(encoding.encode(delta, rounding_seed(name, round))).to(delta.device)

    return received


@dataclass
class Sent:
    """The last delta of a worker."""

    round: int
    delta: Tensor
    """As it was before it was rounded on the wire."""
    counted: bool = False


class DeltaEncoder:
    """Encodes a worker's vector as its difference to what the server has, which keeps nothing but a sum.

    The counted deltas of a worker are added up here as at the server, in float64. So what a rounding takes
    from one delta is part of the next, and the sum stays as near to the vectors as one rounding,
    however many rounds there are. It takes 12 bytes for each number and worker.

    Args:
        wire: the type in which deltas travel.
    """

    def __init__(self, wire: Dtype = FLOAT32) -> None:
        self._received = as_received(wire)
        self._counted: dict[str, Tensor] = {}
        """float64: the sum of the deltas of each worker that were counted."""
        self._sent: dict[str, Sent] = {}

    def encode(self, name: str, round: int, vector: Tensor) -> Tensor:
        """(d,) float32, not to be written to; the same bits for the same round, counted or not."""
        sent = self._sent.get(name)
        if sent is None or sent.round != round:
            before = self._counted.get(name)
            delta = vector.clone() if before is None else (vector.double() - before).to(torch.float32)
            sent = self._sent[name] = Sent(round, delta)
        return sent.delta

    def confirm(self, name: str, round: int) -> None:
        """Note that the server has this worker's delta of this round; a second time changes nothing."""
        sent = self._sent.get(name)
        if sent is None or sent.round != round or sent.counted:
            return
        sent.counted = True
        before, delta = self._counted.get(name), self._received(name, round, sent.delta)
        self._counted[name] = delta.double() if before is None else before.add_(delta)

    def round(self, name: str) -> int | None:
        """The round of the last delta of a worker."""
        sent = self._sent.get(name)
        return None if sent is None else sent.round

    def unconfirmed(self, name: str) -> tuple[int, Tensor] | None:
        """The last delta of a worker and its round, unless it is known to be counted."""
        sent = self._sent.get(name)
        return None if sent is None or sent.counted else (sent.round, sent.delta)

    def state(self, name: str) -> Tree:
        """The history of a worker, for `restore`; what was counted is not copied, and may be written to."""
        sent = self._sent.get(name)
        if sent is None:
            return None
        return {
            "round": sent.round,
            "delta": sent.delta,
            "counted": sent.counted,
            "sum": self._counted.get(name),
        }

    def restore(self, name: str, tree: Any) -> None:
        """Put the history of a worker back; None forgets it, as of one of which the server has nothing."""
        self._counted.pop(name, None)
        self._sent.pop(name, None)
        if tree is None:
            return
        self._sent[name] = Sent(tree["round"], tree["delta"], tree["counted"])
        if tree["sum"] is not None:
            self._counted[name] = tree["sum"].clone()

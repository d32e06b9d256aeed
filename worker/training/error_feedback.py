"""What changed since the last vector of a worker that counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sent:
    round: int
    delta: Tensor
    counted: bool = False


class DeltaEncoder:
    """What workers push when the server keeps nothing but a sum: of each vector what is new in it.

    What the server counted of a worker is added up here as it is there, in float64. So what float32 rounds
    away in one delta is made good by the next, and the sum stays as near to the vectors as one rounding,
    however many rounds there are. It takes 12 bytes for each number and worker.
    """

    def __init__(self) -> None:
        self._counted: dict[str, Tensor] = {}
        """float64: the sum of the deltas of each worker that were counted."""
        self._sent: dict[str, Sent] = {}

    def of(self, name: str, round: int, vector: Tensor) -> Tensor:
        """(d,) float32, not to be written to; the same bits for the same round, counted or not."""
        sent = self._sent.get(name)
        if sent is None or sent.round != round:
            before = self._counted.get(name)
            delta = vector.clone() if before is None else (vector.double() - before).to(torch.float32)
            sent = self._sent[name] = Sent(round, delta)
        return sent.delta

    def anew(self, name: str) -> None:
        """The server has nothing of this worker."""
        self._counted.pop(name, None)
        self._sent.pop(name, None)

    def counted(self, name: str, round: int) -> None:
        """The server has this worker's delta of this round; saying so twice is saying so once."""
        sent = self._sent.get(name)
        if sent is None or sent.round != round or sent.counted:
            return
        sent.counted = True
        before = self._counted.get(name)
        self._counted[name] = sent.delta.double() if before is None else before.add_(sent.delta)

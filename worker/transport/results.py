"""Results of a pull, a computation or a push."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    reason: str


@dataclass(frozen=True)
class Pulled:
    """The parameters of an open round."""

    round: int
    parameters: Tensor
    """(d,) float32 on the CPU; the next pull of this client writes over them."""
    trace_parent: str = ""
    """The name of the round's span, where the server traces and the client looks for it."""


@dataclass(frozen=True)
class Receipt:
    """The result of a push."""

    counted: bool
    code: str = ""
    """The stable code of the refusal."""
    sentence: str = ""
    """The sentence of the refusal, in the server's words."""
    round: int | None = None
    """The round that the server was in."""
    weight: float | None = None
    """The coefficient of this worker's row in the last aggregate that had one, where the server says it."""
    weight_round: int | None = None
    """The round of that aggregate."""


class Declined(Exception):
    """A worker has nothing to send in this round; it goes on with the next one.

    Raised by the computation of a worker. It proves nothing: the worker counts as missing.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        """Why, in one sentence."""
        super().__init__(reason)

"""What came of a pull or a push."""

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


@dataclass(frozen=True)
class Receipt:
    """What became of a push."""

    counted: bool
    code: str = ""
    """Why not, as a stable code."""
    sentence: str = ""
    """Why not, in the server's words."""
    round: int | None = None
    """The round that the server was in."""

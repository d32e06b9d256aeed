"""Wrong shape: a manifest of another model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, VectorAttack
from varangian.worker.attacks.nested import check_inner
from varangian.worker.attacks.on_protocol import Line, Push, check_every, is_due

UNKNOWN_TYPE = 99
"""A type of numbers that no version of the protocol has."""


@ATTACKS.register("wrong_shape")
@dataclass(frozen=True)
class WrongShape:
    """Wrong shape: a vector of another length, model or type of numbers, and a manifest that says so.

    The vector of length 1 is there because numpy and torch would broadcast it. The server compares the
    manifest with the model before it reads a byte of payload; it proves nothing, since no digest covers
    a manifest.

    Vector: a vector of another shape or type.
    Source: no paper.
    """

    what: Literal["longer", "shorter", "one", "layout", "dtype"] = "longer"
    """The fault: the number of numbers (one more, one less, or just one), the digest of the layout, or
    the type of the numbers."""
    every: int = 1
    """Attack in every so many rounds; push as an honest worker does in the others."""
    attack: Annotated[VectorAttack | None, ATTACKS] = None
    """The attack that makes the vector, a name or a name with its fields; null is the honest vector."""

    def __post_init__(self) -> None:
        check_inner(self.attack)
        check_every(self.every)

    async def send(self, line: Line, round: int, vector: Tensor, rng: torch.Generator) -> None:
        push = line.prepare(round, vector)
        await line.send(self._misshape(line, push, vector) if is_due(round, self.every) else push)

    def _misshape(self, line: Line, push: Push, vector: Tensor) -> Push:
        match self.what:
            case "longer":
                wrong = torch.cat((vector, vector[:1]))
            case "shorter":
                wrong = vector[:-1]
            case "one":
                wrong = vector[:1]
            case "layout":
                return replace(push, layout=bytes(byte ^ 0xFF for byte in push.layout))
            case "dtype":
                return replace(push, dtype=UNKNOWN_TYPE)
        return replace(line.prepare(push.round, wrong), numel=wrong.numel())

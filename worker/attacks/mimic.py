"""Mimic: attackers repeat an honest worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight


@ATTACKS.register("mimic")
@dataclass(frozen=True)
class Mimic:
    """Mimic: every attacker copies the vector of one honest worker, which so counts f + 1 times.

    "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing" (Karimireddy et al., 2022). The
    paper follows the direction in which honest vectors differ most over several rounds, then keeps the
    worker that is furthest along it. Without state, this takes that direction from the round at hand, so
    the worker can change from round to round; a fixed `target` keeps one.
    """

    needs: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    target: int | None = None
    """Place of the copied worker among the honest ones, by name, from 0; null chooses in each round."""

    def __post_init__(self) -> None:
        if self.target is not None and self.target < 0:
            raise ValueError(f"`target` should be a non-negative integer or null. Found {self.target}.")

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if self.target is not None and self.target >= seen:
            return f"its target is honest worker {self.target}, and there are {seen}, counted from 0"
        return None

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        target = outermost(knows.honest) if self.target is None else self.target
        return knows.honest[target].clone()


def outermost(rows: Tensor) -> int:
    """The row of (k, d) that is furthest from the mean along the direction of most variance."""
    centred = rows - rows.mean(dim=0)
    gram = (centred @ centred.T).to("cpu", torch.float64)
    # Coordinates along the top direction are the top eigenvector of the Gram matrix, up to their unit.
    return int(torch.linalg.eigh(gram).eigenvectors[:, -1].abs().argmax())

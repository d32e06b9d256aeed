"""One block: the whole deviation in one parameter tensor of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

from torch import Tensor

from varangian.worker.attacks import min_max
from varangian.worker.attacks.base import ATTACKS, AttackError, Knowledge, Sight
from varangian.worker.attacks.honest_rows import Direction, measure, same_place, sendable


@ATTACKS.register("one_block")
@dataclass(frozen=True)
class OneBlock:
    """One block: the honest mean, but for one parameter tensor, which takes the whole deviation of min-max.

    A rule by distances of whole vectors sees no more than it does of `min_max`, while one tensor is moved
    as far as all of them were to be: what a rule for each layer by itself (`per_block: true`) is meant to
    stop. The closed form is that of `min_max` with the p of this tensor alone. It is not from a paper.

    Vector: mean + gamma p with the p of one tensor and 0 elsewhere, gamma as of min_max.
    Source: no paper.
    """

    needs: ClassVar[Sight] = "colluders"
    usual: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    block: int = -1
    """Place of the tensor among the parameters of the model, from 0; negative counts from the last."""
    direction: Direction = "std"
    """p: against the mean ("unit"), against the standard deviation ("std"), or against the signs of the
    mean ("sign")."""

    def requires(self, n: int, f: int, seen: int) -> str | None:
        return same_place(seen)

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        part = self._columns(knows.blocks or (len(own),))
        rows, inside = measure(knows.honest, "unit"), measure(knows.honest[:, part], self.direction)
        gamma = min_max.strength(replace(rows, along=inside.along, length=inside.length))
        vector = rows.mean
        vector[part].add_(inside.direction, alpha=gamma)
        return sendable(vector, own)

    def _columns(self, sizes: tuple[int, ...]) -> slice:
        """The coordinates of the tensor, of parameter tensors with these sizes."""
        if not -len(sizes) <= self.block < len(sizes):
            raise AttackError(
                f"`byzantine.attack` one_block should have a block of the model, which has {len(sizes)}, "
                f"from 0 to {len(sizes) - 1}. Found {self.block}."
            )
        ends = [0, *accumulate(sizes)]
        place = self.block % len(sizes)
        return slice(ends[place], ends[place + 1])

"""Mimic: attackers repeat an honest worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, Knowledge, Sight
from varangian.worker.attacks.geometry import unit


class Course(NamedTuple):
    """The memory of attackers after some rounds."""

    rounds: int
    """Rounds of the warm-up that are over."""
    mean: Tensor
    """Of the honest vectors of these rounds, (d,)."""
    direction: Tensor
    """In which honest vectors differ most, (d,), of length 1."""
    target: str
    """The worker that is copied."""


@ATTACKS.register("mimic")
@dataclass(frozen=True)
class Mimic:
    """Mimic: every attacker copies the vector of one honest worker, which so counts f + 1 times.

    "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing" (Karimireddy et al., 2022). The
    paper follows the direction in which honest vectors differ most over some rounds, then keeps the worker
    that is furthest along it: `warmup` is the number of these rounds. Without, the direction is that of the
    round at hand, so the worker can change from round to round; a fixed `target` keeps one.

    Vector: the g_i that is furthest along the direction in which honest vectors differ most.
    """

    needs: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    target: int | None = None
    """Place of the copied worker among the honest ones, by name, from 0; null chooses in each round."""
    warmup: int = 0
    """Rounds in which the direction is followed, as in the paper, and the worker that is furthest along it
    is copied; after them the last of these workers. 0 is without."""

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"`warmup` should be a number of rounds, at least 0. Found {self.warmup}.")
        if self.warmup > 0 and self.target is not None:
            raise ValueError("`warmup` should be 0 with a `target`: it chooses one")
        if self.target is not None and self.target < 0:
            raise ValueError(f"`target` should be a non-negative integer or null. Found {self.target}.")

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if self.target is not None and self.target >= seen:
            return f"its target is honest worker {self.target}, and there are {seen}, counted from 0"
        return None

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        target = outermost(knows.honest) if self.target is None else self.target
        return knows.honest[target].clone()

    @property
    def remembers(self) -> bool:
        return self.warmup > 0

    def start(self) -> Course | None:
        return None

    def step(self, own: Tensor, knows: Knowledge, memory: Course | None) -> tuple[Tensor, Course]:
        rows = knows.honest
        course = memory if memory is not None and memory.rounds == self.warmup else _followed(knows, memory)
        if course.target in knows.names:
            return rows[knows.names.index(course.target)].clone(), course
        return rows[_furthest(rows, course.direction)].clone(), course


def outermost(rows: Tensor) -> int:
    """The row of (k, d) that is furthest from the mean along the direction of most variance."""
    centred = rows - rows.mean(dim=0)
    gram = (centred @ centred.T).to("cpu", torch.float64)
    # Coordinates along the top direction are the top eigenvector of the Gram matrix, up to their unit.
    return int(torch.linalg.eigh(gram).eigenvectors[:, -1].abs().argmax())


def _followed(knows: Knowledge, before: Course | None) -> Course:
    """The running mean and direction after one round more: Oja's iteration, as the paper has it."""
    rows, t = knows.honest, 0 if before is None else before.rounds
    mean = rows.mean(dim=0)
    if before is None:
        direction = _first_direction(rows - mean)
    else:
        mean = before.mean.lerp(mean, 1 / (1 + t))
        centred = rows - mean
        pulled = unit(centred.T @ (centred @ before.direction))
        direction = unit(before.direction.lerp(pulled, 1 / (1 + t)))
    return Course(t + 1, mean, direction, knows.names[_furthest(rows, direction)])


def _first_direction(centred: Tensor) -> Tensor:
    """The direction of most variance of (k, d), towards the row that is furthest along it, (d,)."""
    gram = (centred @ centred.T).to("cpu", torch.float64)
    along = torch.linalg.eigh(gram).eigenvectors[:, -1]
    along *= along[along.abs().argmax()].sign()
    return unit(centred.T @ along.to(centred))


def _furthest(rows: Tensor, direction: Tensor) -> int:
    return int((rows @ direction).argmax())

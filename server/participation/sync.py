"""Everybody, in step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION


@PARTICIPATION.register("sync")
@dataclass(frozen=True)
class Sync:
    """A round waits for every worker, until its deadline; its vectors are all made for its own model.

    The parallel SGD of the textbooks. The rule is given one row for each worker that answered.
    """

    def problems(self, n: int, f: int) -> Iterator[Problem]:
        return iter(())

    def answers(self, n: int, f: int) -> int:
        return n

    def quorum(self, n: int, f: int) -> int:
        return max(1, n - f)

    def rows(self, n: int, quorum: int) -> tuple[int, ...]:
        return tuple(sorted({quorum, n}))

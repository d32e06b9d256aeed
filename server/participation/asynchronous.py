"""Nobody waits for anybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION
from varangian.server.participation.staleness import STALENESS, Polynomial, Staleness


@PARTICIPATION.register("async")
@dataclass(frozen=True)
class Async:
    """Whoever is ready gets the newest model; once `buffer` vectors are there the rule runs over them.

    "Federated Learning with Buffered Asynchronous Aggregation" (Nguyen et al., 2022), with one place in the
    buffer for each worker: however fast it is, its next vector counts only after this one was used. So of
    the rows of a round no more than f are Byzantine, if no more than f workers are.
    """

    buffer: int | None = None
    """Vectors that make a round; null is workers - f, so that silent ones hold nothing up."""
    tau: int = 10
    """How many rounds old the model of a vector may be when it is used; an older vector is refused."""
    staleness: Annotated[Staleness, STALENESS] = field(default_factory=Polynomial)
    """What a vector counts by its age in rounds; an honest one is never weighted up."""

    def __post_init__(self) -> None:
        if self.buffer is not None and self.buffer < 1:
            raise ValueError(f"`buffer` should be null or at least 1 vector. Found {self.buffer}.")
        if self.tau < 0:
            raise ValueError(f"`tau` should be a number of rounds, at least 0. Found {self.tau}.")

    def problems(self, n: int, f: int) -> Iterator[Problem]:
        if self.buffer is not None and self.buffer > n:
            rule = f"should be at most the number of workers, {n}: each has one place in it"
            yield Problem("buffer", rule, self.buffer)

    def answers(self, n: int, f: int) -> int:
        return max(1, n - f) if self.buffer is None else self.buffer

    def quorum(self, n: int, f: int) -> int:
        return max(1, self.answers(n, f) - f)

    def rows(self, n: int, quorum: int) -> tuple[int, ...]:
        # What comes while a round is aggregated is held for the next, which so may begin with more than
        # `buffer`.
        sizes = {quorum, n} if self.buffer is None else {quorum, self.buffer, n}
        return tuple(sorted(sizes))

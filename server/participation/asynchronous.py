"""Buffered asynchronous aggregation (FedBuff): no worker waits for another.

A worker that is ready gets the newest model at once, and its vector may be some rounds old when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION, Participation
from varangian.server.participation.selection import InviteReady
from varangian.server.participation.staleness import STALENESS, Constant, Polynomial, Staleness
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.state import RunState
from varangian.server.rows.source import RowSource, WeightedByAge


@PARTICIPATION.register("async")
@dataclass(frozen=True)
class Async(Participation):
    """Buffered asynchronous aggregation (FedBuff): a ready worker gets the newest model at once.

    The rule runs as soon as `buffer` vectors have arrived. "Federated Learning with Buffered Asynchronous
    Aggregation" (Nguyen et al., 2022), but with one place in the buffer for each worker: however fast it
    is, its next vector counts only after this one was used. So at most f rows of a round are Byzantine if
    at most f workers are.
    """

    buffer: int | None = None
    """Vectors that make a round; null is workers - f, so that f silent workers do not delay it."""
    tau: int = 10
    """Maximum staleness: the age in rounds of the model of a vector; an older vector is refused."""
    staleness: Annotated[Staleness, STALENESS] = field(default_factory=Polynomial)
    """Staleness weight: the factor of a vector by its age in rounds; never above 1."""

    adaptive_waiting = False  # the buffer says how many workers a round does without

    def __post_init__(self) -> None:
        if self.buffer is not None and self.buffer < 1:
            raise ValueError(f"`buffer` should be null or at least 1 vector. Found {self.buffer}.")
        if self.tau < 0:
            raise ValueError(f"`tau` should be a number of rounds, at least 0. Found {self.tau}.")

    def problems(self, n: int, f: int, deadline: Seconds) -> Iterator[Problem]:
        if self.buffer is not None and self.buffer > n:
            rule = f"should be at most the number of workers, {n}: each has one place in it"
            yield Problem(self.setting("buffer"), rule, self.buffer)

    def remedies(self, n: int) -> Mapping[str, Iterable[int]]:
        larger = {} if self.buffer is None else {self.setting("buffer"): range(self.buffer + 1, n + 1)}
        return {**super().remedies(n), **larger}

    def round_size(self, n: int, f: int) -> int:
        return max(1, n - f) if self.buffer is None else self.buffer

    def selection(self, n: int, f: int) -> BufferSelection:
        return BufferSelection(self.round_size(n, f), self.tau, self.staleness)

    def row_counts(self, n: int, f: int, quorum: int) -> tuple[int, ...]:
        # A vector that comes while a round is aggregated is held for the next, which so may begin with more
        # than `buffer`.
        sizes = {quorum, n} if self.buffer is None else {quorum, self.buffer, n}
        return tuple(sorted(sizes))

    def row_source(self, workers: Sequence[Worker], d: int, warn: Callable[[str], None]) -> RowSource:
        return WeightedByAge()

    def extra_vectors(self, n: int) -> int:
        """The models of rounds that are over, on their way to slow workers."""
        return min(n, self.tau)


@dataclass(frozen=True)
class BufferSelection(InviteReady):
    """Selection of a buffer: ready workers get the current model; `size` vectors make a round.

    A worker has one place in the buffer: its next invitation comes after its vector is used.
    """

    size: int
    tau: int
    """Maximum staleness in rounds when a vector is used."""
    staleness: Staleness = field(default_factory=Constant)

    def full_size(self, n: int, round: int) -> int:
        return self.size

    def needed(self, workers: tuple[Worker, ...], state: RunState, ready: int) -> int:
        return self.size

    def factor(self, age: int) -> float:
        return self.staleness.factor(age)

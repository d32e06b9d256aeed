"""Rows for runs in which only some workers upload at once: a row is lent to one after the other."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from varangian.protos.encoding import WIRE, Dtype
from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Worker
from varangian.server.rows.slot import Slot

Standing: TypeAlias = Callable[[Slot], Refusal | None]
Needed: TypeAlias = Callable[[Worker], bool]


class LentRows:
    """(seats, d): where vectors land, and stay until they are used.

    Nothing is done with a vector before it is complete, since nobody knows in which round it will count.

    Args:
        seats: how many vectors there can be at once.
        d: columns of each.
        dtype: how they are kept.
        standing: why an upload would not count any more, if so.
        needed: whether the vector of a worker is still on its way, waits to be used, or is being used.
    """

    def __init__(self, seats: int, d: int, dtype: Dtype, standing: Standing, needed: Needed) -> None:
        # Written to now, so that no round waits for the kernel to find the pages.
        self._matrix = torch.zeros(seats, d, dtype=WIRE[dtype][1]).fill_(0)
        self.overtaken = standing
        self._needed = needed
        self._free = [*range(seats)]
        self._lent: dict[Worker, int] = {}
        self._pinned = set[Worker]()

    def refuses(self, worker: Worker, round: int) -> Refusal | None:
        """BUSY while there is no row: those who have one will be done with it, or be given up."""
        if not self._free and worker not in self._lent:
            self._collect()
        there = worker in self._lent or self._free
        return None if there and worker not in self._pinned else Refusal.BUSY

    def pin(self, workers: Iterable[Worker]) -> None:
        """The rows of these workers are read, though their round is over."""
        self._pinned.update(workers)

    def unpin(self, workers: Iterable[Worker]) -> None:
        self._pinned.difference_update(workers)

    def rows(self, workers: Iterable[Worker]) -> Mapping[Worker, Tensor]:
        return {worker: self._matrix[self._lent[worker]] for worker in workers}

    def opened(self, slot: Slot) -> None:
        if slot.worker not in self._lent:
            self._lent[slot.worker] = heapq.heappop(self._free)

    def free(self, slot: Slot) -> int:
        return self._matrix.shape[1] - slot.columns

    def place(self, slot: Slot) -> tuple[Tensor, int, int]:
        return self._matrix[self._lent[slot.worker]], slot.columns, self.free(slot)

    async def room(self, slot: Slot) -> None:
        """There always is."""

    def came(self, slot: Slot) -> None:
        """Nothing is done before all of it is there."""

    def gone(self, slot: Slot) -> None:
        """Its row is found when it is looked for."""

    def withdrawn(self, worker: Worker) -> None:
        """As `gone`."""

    def look(self) -> None:
        """Nothing waits for what the machine does."""

    def _collect(self) -> None:
        used = [worker for worker in self._lent if self._needed(worker) or worker in self._pinned]
        for worker in self._lent.keys() - used:
            heapq.heappush(self._free, self._lent.pop(worker))

"""Pushes on their way in: one matrix, allocated once, a row for each worker, and who may fill it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from varangian.aggregators.kernels.ingress import landed
from varangian.protos.codec import FLOAT32, WIRE, Dtype
from varangian.server.events import Refusal, Worker

NOT_FINITE = "not finite"
"""What is proved by a number that is none, or too large for a row."""


class Overtaken(Exception):
    """The round has gone on without the rest of this upload."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.value)


class RowStore:
    """(n, d), reused every round; its size is all that uploads can ever take."""

    def __init__(self, workers: Sequence[Worker], d: int, dtype: Dtype = FLOAT32) -> None:
        # Written to now, so that no round waits for the kernel to find the pages.
        self._matrix = torch.zeros(len(workers), d, dtype=WIRE[dtype][1]).fill_(0)
        self._index = {worker: i for i, worker in enumerate(workers)}

    def __len__(self) -> int:
        """Columns of each row."""
        return self._matrix.shape[1]

    def row(self, worker: Worker) -> Tensor:
        """(d,), a view."""
        return self._matrix[self._index[worker]]

    def rows(self, workers: Iterable[Worker]) -> dict[Worker, Tensor]:
        return {worker: self.row(worker) for worker in workers}


class Way(Protocol):
    """From slots to where their numbers go, and who should know."""

    def overtaken(self, slot: Slot, /) -> Refusal | None: ...
    def free(self, slot: Slot, /) -> int:
        """How many more numbers there is room for."""
        ...

    def place(self, slot: Slot, /) -> tuple[Tensor, int, int]:
        """A row, the entry of the next number, and how many of them can follow it there."""
        ...

    async def room(self, slot: Slot, /) -> None:
        """Return when there is any."""
        ...

    def came(self, slot: Slot, /) -> None:
        """There is more of it."""
        ...


class Slot:
    """A worker's permission to put one vector into its row.

    Args:
        worker: whose.
        round: for which the vector is.
        digest: what its bytes should hash to; not checked here.
        d: how many numbers.
        dtype: how they come.
        way: where they go.
    """

    def __init__(
        self,
        worker: Worker,
        round: int,
        digest: bytes,
        d: int,
        dtype: Dtype,
        way: Way,
    ) -> None:
        self.worker = worker
        self.round = round
        self.digest = digest
        self.columns = 0
        """How many numbers have landed."""
        self.sound = True
        """Whether all of them are finite; the others are not kept."""
        self._d = d
        self._dtype: Dtype = dtype
        self._width = WIRE[dtype][1].itemsize
        self._way = way
        self._cut = bytearray()

    @property
    def size(self) -> int:
        """Bytes of the payload on the wire."""
        return self._d * self._width

    @property
    def full(self) -> bool:
        """Whether every byte has arrived."""
        return self.columns == self._d

    @property
    def overtaken(self) -> Refusal | None:
        """Why the round does not wait for this vector any more, if it does not."""
        return self._way.overtaken(self)

    @property
    def crowded(self) -> bool:
        """Whether the next number has to wait for others."""
        return self.waits(self._width)

    def waits(self, size: int) -> bool:
        """Whether so many bytes more, or all that are left, have to wait for others."""
        columns = min(self._d - self.columns, -(-size // self._width))
        return self.sound and columns > self._way.free(self)

    async def put(self, data: bytes | memoryview) -> None:
        """The next bytes of the payload, wherever they are cut; never more than `size` in all.

        They are converted, screened and stored while they are in cache: 4 MiB take a millisecond. In a
        windowed round this waits until the others are so far.

        Raises:
            Overtaken: the round has gone on meanwhile. The slot is still to be released.
        """
        if refusal := self.overtaken:
            raise Overtaken(refusal)
        await self._take(memoryview(data).cast("B"))

    async def _take(self, data: memoryview) -> None:
        width = self._width
        if self._cut:
            rest = width - len(self._cut)
            self._cut += data[:rest]
            data = data[rest:]
            if len(self._cut) < width:
                return
            await self._land(memoryview(bytes(self._cut)))
            self._cut.clear()
        whole = len(data) - len(data) % width
        await self._land(data[:whole])
        self._cut += data[whole:]

    async def _land(self, numbers: memoryview) -> None:
        if self.columns + len(numbers) // self._width > self._d:
            raise ValueError(f"A payload should have {self.size} bytes. Found more.")
        while numbers:
            if self.crowded:
                await self._way.room(self)
            row, at, most = self._way.place(self)
            piece = numbers[: most * self._width] if self.sound else numbers
            self.sound = self.sound and landed(piece, at, self._dtype, row)
            self.columns += len(piece) // self._width
            numbers = numbers[len(piece) :]
            self._way.came(self)

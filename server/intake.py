"""Pushes on their way in: one matrix, allocated once, a row for each worker, and who may fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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

    def row(self, worker: Worker) -> Tensor:
        """(d,), a view."""
        return self._matrix[self._index[worker]]

    def rows(self, workers: Iterable[Worker]) -> dict[Worker, Tensor]:
        return {worker: self.row(worker) for worker in workers}


class Slot:
    """A worker's permission to put one vector into its row.

    Args:
        worker: whose.
        round: for which the vector is.
        digest: what its bytes should hash to; not checked here.
        row: (d,), where the numbers go.
        dtype: how the numbers come.
        overtaken: why the round does not wait for this vector any more, if it does not.
        came: called after each piece.
    """

    def __init__(
        self,
        worker: Worker,
        round: int,
        digest: bytes,
        row: Tensor,
        dtype: Dtype,
        *,
        overtaken: Callable[[Slot], Refusal | None],
        came: Callable[[Slot], None],
    ) -> None:
        self.worker = worker
        self.round = round
        self.digest = digest
        self.columns = 0
        """How many numbers have landed."""
        self.sound = True
        """Whether all of them are finite; the others are not kept."""
        self._row = row
        self._dtype: Dtype = dtype
        self._width = WIRE[dtype][1].itemsize
        self._overtaken = overtaken
        self._came = came
        self._cut = bytearray()

    @property
    def size(self) -> int:
        """Bytes of the payload on the wire."""
        return self._row.numel() * self._width

    @property
    def full(self) -> bool:
        """Whether every byte has arrived."""
        return self.columns == self._row.numel()

    async def put(self, data: bytes | memoryview) -> None:
        """The next bytes of the payload, wherever they are cut; never more than `size` in all.

        They are converted, screened and stored while they are in cache: 4 MiB take a millisecond.

        Raises:
            Overtaken: the round has gone on meanwhile. The slot is still to be released.
        """
        if refusal := self._overtaken(self):
            raise Overtaken(refusal)
        self._take(memoryview(data).cast("B"))
        self._came(self)

    def _take(self, data: memoryview) -> None:
        width = self._width
        if self._cut:
            rest = width - len(self._cut)
            self._cut += data[:rest]
            data = data[rest:]
            if len(self._cut) < width:
                return
            self._land(memoryview(bytes(self._cut)))
            self._cut.clear()
        whole = len(data) - len(data) % width
        self._land(data[:whole])
        self._cut += data[whole:]

    def _land(self, numbers: memoryview) -> None:
        end = self.columns + len(numbers) // self._width
        if end > self._row.numel():
            raise ValueError(f"A payload should have {self.size} bytes. Found more.")
        self.sound = self.sound and landed(numbers, self.columns, self._dtype, self._row)
        self.columns = end

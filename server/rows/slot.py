"""Pushes on their way in: one matrix, allocated once, a row for each worker, and who may fill it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from varangian.aggregators.kernels.ingress import landed
from varangian.protos.data_channel.transfer import Receive, Sink, thread_buffer
from varangian.protos.encoding import FLOAT32, WIRE, Dtype, encode_vector
from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Worker

NOT_FINITE = "not finite"
"""What is proved by a number that is none, or too large for a row."""


class Overtaken(Exception):
    """The round has gone on without the rest of this upload."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.sentence)


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


class SlotListener(Protocol):
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
        way: SlotListener,
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
        self._row: memoryview | None = None
        self._lock = threading.Lock()
        """Held while numbers land: a row has one writer, and none once its slot is closed."""
        self._closed = False

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

    @property
    def room(self) -> int:
        """Bytes that may come now; fewer than a number when it is crowded."""
        left = self.size - self._bytes
        return min(left, self._way.free(self) * self._width - len(self._cut)) if self.sound else left

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
        self.stand()
        for numbers in self._whole(memoryview(data).cast("B")):
            while numbers:
                if self.crowded:
                    await self._way.room(self)
                numbers = numbers[self._some(numbers) :]
                self.came()

    def take(self, data: memoryview) -> None:
        """The same in a thread, for at most `room` bytes, without waiting; `came` is to be called after it.

        Raises:
            Overtaken: the slot was closed.
        """
        for numbers in self._whole(data):
            while numbers:
                numbers = numbers[self._some(numbers) :]

    def fill(self, receive: Receive, most: int, look: Sink) -> int:
        """Receive once, at most so many bytes, of at most `room`; for threads. `came` is to be called then.

        Into the row itself, where the numbers are written as they are kept; `look` sees them as they came.

        Raises:
            Overtaken: the slot was closed.
        """
        if self._cut or not self.sound:
            # A number in two parts is put together; then the next bytes begin with a number again.
            memory = thread_buffer()[: min(most, self._width - len(self._cut)) if self._cut else most]
            if count := receive(memory):
                look(memory[:count])
                self.take(memory[:count])
            return count
        with self._lock:
            memory = self._ahead()[:most]
            if count := receive(memory):
                look(memory[:count])
                whole = count - count % self._width
                self._landed(memory[:whole])
                self._cut += memory[whole:count]
        return count

    def stand(self) -> None:
        """Go on only while the vector can count.

        Raises:
            Overtaken: it cannot. The slot is still to be released.
        """
        if refusal := self.overtaken:
            raise Overtaken(refusal)

    async def uncrowded(self) -> None:
        """Return when the next number need not wait.

        Raises:
            Overtaken: the round has gone on meanwhile. The slot is still to be released.
        """
        while self.crowded:
            await self._way.room(self)

    def came(self) -> None:
        """Tell who should know that there is more."""
        self._way.came(self)

    def close(self) -> None:
        """Nothing lands any more, from no thread."""
        with self._lock:
            self._closed = True

    @property
    def _bytes(self) -> int:
        """That have come."""
        return self.columns * self._width + len(self._cut)

    def _whole(self, data: memoryview) -> Iterator[memoryview]:
        """Whole numbers, in at most two pieces; the bytes of a cut one are kept."""
        width = self._width
        if self._bytes + len(data) > self.size:
            raise ValueError(f"A payload should have {self.size} bytes. Found more.")
        if self._cut:
            rest = width - len(self._cut)
            self._cut += data[:rest]
            data = data[rest:]
            if len(self._cut) < width:
                return
            number = memoryview(bytes(self._cut))
            self._cut.clear()
            yield number
        whole = len(data) - len(data) % width
        yield data[:whole]
        self._cut += data[whole:]

    def _some(self, numbers: memoryview) -> int:
        """Land as many as there is a place for; how many bytes they had."""
        with self._lock:
            return self._landed(numbers)

    def _landed(self, numbers: memoryview) -> int:
        row, at, most = self._place()
        piece = numbers[: most * self._width] if self.sound else numbers
        self.sound = self.sound and landed(piece, at, self._dtype, row)
        self.columns += len(piece) // self._width
        return len(piece)

    def _ahead(self) -> memoryview:
        """Memory for the next bytes: the row, or a buffer where numbers have to be converted."""
        row, at, most = self._place()
        if row.dtype != WIRE[self._dtype][1]:
            return thread_buffer()[: most * self._width]
        if self._row is None:
            self._row = encode_vector(row, self._dtype)
        return self._row[at * self._width : (at + most) * self._width]

    def _place(self) -> tuple[Tensor, int, int]:
        """As that of the way. While a thread is busy, the others may begin anew and take the room away."""
        if self._closed:
            raise Overtaken(Refusal.UNOFFERED)
        row, at, most = self._way.place(self)
        if most < 1 and self.sound:
            raise Overtaken(Refusal.RESTARTED)
        return row, at, most

"""Upload slot: check the payload of one push and write it into its row of the gradient matrix."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.protos.data_channel.transfer import BLOCK
from varangian.protos.payloads.encoding import FLOAT32, TORCH, Dtype, Encoding
from varangian.protos.payloads.receiving import PayloadSink
from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Worker
from varangian.server.rows.landing import store_columns
from varangian.server.rows.storage import UploadStorage

_buffers = threading.local()

NOT_FINITE = "not finite"
"""The fault of a NaN, an infinity, or a number that is too large for a row."""


class Overtaken(Exception):
    """The round has gone on without the rest of this upload."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.sentence)


async def _always(slot: Slot) -> None:
    """There is room at all times."""


def _nobody(slot: Slot) -> None:
    """A listener that ignores the progress of an upload."""


@dataclass(frozen=True)
class SlotListener:
    """The interface of a round for its slots."""

    refusal: Callable[[Slot], Refusal | None]
    """The refusal of a vector that cannot count any more; None while it can."""
    progressed: Callable[[Slot], None] = _nobody
    """The slot was opened, more numbers have landed in it, or it was given up."""
    wait_for_room: Callable[[Slot], Awaitable[None]] = _always
    """Returns when there is room for the next number; raises `Overtaken` when there will be none."""


class Slot:
    """A worker's permission to put one vector into its row.

    Numbers land in `sink`, from the event loop or from a thread, and are converted and screened there.

    Args:
        worker: whose.
        round: for which the vector is.
        digest: what its bytes should hash to; not checked here.
        encoding: how its numbers come.
        storage: where they go.
        listener: the round that the vector is for.
    """

    def __init__(
        self,
        worker: Worker,
        round: int,
        digest: bytes,
        encoding: Encoding,
        storage: UploadStorage,
        listener: SlotListener,
    ) -> None:
        self.worker = worker
        self.round = round
        self.digest = digest
        self.finite = True
        """Whether all numbers that have landed are finite; those after one that is not are not kept."""
        self.closed = False
        self._encoding = encoding
        self._storage = storage
        self._listener = listener
        self.sink = PayloadSink(encoding.size, self._memory, self._landed)
        """Takes the bytes of the payload."""
        self._row: tuple[int, memoryview] | None = None
        """Address and bytes of a row whose numbers are kept as they come."""
        self._target: tuple[Tensor, int, memoryview] | None = None
        """Row, entry and memory of the next unit, of which a part may be there; None if it is lost."""
        self._part = b""
        """Of a unit that has not come as a whole, where numbers have to be converted."""

    @property
    def size(self) -> int:
        """Bytes of the payload on the wire."""
        return self.sink.size

    @property
    def columns(self) -> int:
        """The number of columns that have landed."""
        return self._encoding.columns(self.sink.passed)

    @property
    def full(self) -> bool:
        """Whether every byte has arrived."""
        return self.sink.complete

    @property
    def refusal(self) -> Refusal | None:
        """Why the vector would not count any more, if so."""
        return self._listener.refusal(self)

    @property
    def free_bytes(self) -> int:
        """Bytes that may come now; fewer than a unit where there is no room."""
        left = self.size - self.sink.passed
        if not self.finite:
            return left
        end = self._encoding.whole(self.columns + self._storage.free(self.worker, self.columns))
        return min(left, self._encoding.offset(end) - self.sink.passed)

    def has_room(self, size: int = 1) -> bool:
        """Whether so many bytes more, or all that are left, need not wait until rows are reduced."""
        if not self.finite:
            return True
        columns = self._encoding.reached(min(self.size, self.sink.passed + size)) - self.columns
        return columns <= self._storage.free(self.worker, self.columns)

    async def put(self, data: bytes | memoryview) -> None:
        """The next bytes of the payload, wherever they are cut; never more than `size` in all.

        They are converted, screened and stored while they are in cache: 4 MiB take a millisecond. In a
        windowed round this waits until the others are so far.

        Raises:
            Overtaken: the round has gone on meanwhile. The slot is still to be released.
        """
        self.check()
        rest = memoryview(data).cast("B")
        while rest:
            await self.wait_for_room()
            rest = rest[self.sink.take(rest) :]
            self.report_progress()

    async def put_whole(self, data: bytes, digest: bytes) -> None:
        """All bytes of the payload at once, and what they should hash to.

        Where there is room for all of them they are verified first, and stored without a copy between.

        Raises:
            Refused: they are not what was promised.
            Overtaken: the round has gone on meanwhile. The slot is still to be released.
        """
        self.sink.check(0, data)
        self.check()
        row, entry, most = self._storage.place(self.worker, 0)
        if most < self._encoding.numel:
            await self.put(data)
            self.sink.finish(digest)
            return

        def store(numbers: bytes | memoryview) -> None:
            self.finite = store_columns(numbers, self._encoding, 0, row, entry)

        self.sink.take_whole(data, digest, store)
        self.report_progress()

    def check(self) -> None:
        """Go on only while the vector can count.

        Raises:
            Overtaken: it cannot. The slot is still to be released.
        """
        if refusal := self.refusal:
            raise Overtaken(refusal)

    async def wait_for_room(self) -> None:
        """Return when the next number need not wait.

        Raises:
            Overtaken: the round has gone on meanwhile. The slot is still to be released.
        """
        while not self.has_room():
            await self._listener.wait_for_room(self)

    def report_progress(self) -> None:
        """Tell the round that there is more, that the slot is open, or that it was given up."""
        self._listener.progressed(self)

    def close(self) -> None:
        """Accept no more bytes from any thread."""
        self.closed = True
        self.sink.close(lambda: Overtaken(Refusal.UNOFFERED))

    def _memory(self, at: int) -> memoryview:
        """Memory for the bytes from here on: the row, or a buffer where numbers have to be converted."""
        self._target = None
        if not self.finite:
            return _thread_buffer()
        encoding = self._encoding
        column = encoding.columns(at)
        part = at - encoding.offset(column)
        row, entry, most = self._storage.place(self.worker, column)
        segment = encoding.rounded if column < encoding.rounded else encoding.numel
        size = encoding.offset(encoding.whole(min(column + most, segment))) - encoding.offset(column)
        if size < 1:  # while a thread was busy, the others have begun anew and taken the room away
            raise Overtaken(Refusal.RESTARTED)
        dtype: Dtype = encoding.dtype if column < encoding.rounded else FLOAT32
        if dtype != "int8" and row.dtype == TORCH[dtype]:
            start = entry * row.element_size()
            memory = self._bytes_of(row)[start : start + size]
        else:
            memory = _thread_buffer()[:size]
            memory[:part] = self._part
        self._target = row, entry, memory
        return memory[part:]

    def _landed(self, data: memoryview) -> None:
        if self._target is None:
            return
        row, entry, memory = self._target
        encoding, column = self._encoding, self.columns
        begin = encoding.offset(column)
        stop = self.sink.passed + len(data)
        whole = encoding.offset(encoding.columns(stop)) - begin
        if whole:
            self.finite = store_columns(memory[:whole], encoding, column, row, entry)
        self._part = bytes(memory[whole : stop - begin])

    def _bytes_of(self, row: Tensor) -> memoryview:
        if self._row is None or self._row[0] != row.data_ptr():
            self._row = row.data_ptr(), row.view(torch.uint8).numpy().data
        return self._row[1]


def _thread_buffer() -> memoryview:
    """A buffer of this thread, for numbers that have to be converted or are not kept."""
    found: memoryview | None = getattr(_buffers, "buffer", None)
    if found is None:
        found = _buffers.buffer = memoryview(bytearray(BLOCK))
    return found

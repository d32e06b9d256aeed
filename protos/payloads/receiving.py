"""Receiving a payload: its bytes are counted, hashed and put where they belong, whichever way they come.

Both ends use it, the server for pushes and workers for models, for chunks of a call and for bytes from the
data channel. It does no I/O: whoever has bytes hands them over, or is given memory to receive them into.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

import xxhash

from varangian.protos.errors import Refused
from varangian.protos.payloads.encoding import check_digest, payload_digest
from varangian.protos.refusals import Refusal

BLOCK = 1 << 18
"""Bytes that are copied, hashed and handed over at once, while they are in cache."""

Receive: TypeAlias = Callable[[memoryview], int]
"""Receives into memory, at most as much as there is; returns how many bytes that were."""
Fill: TypeAlias = Callable[[Receive, int], int]
"""Calls the first once with memory, of at most so many bytes, and returns what it returned."""


class PayloadSink:
    """Takes the bytes of one payload, in order.

    Bytes may be received in a thread while the event loop gives the payload up: nothing lands after that.

    Args:
        size: bytes of the payload.
        memory: where the bytes from a position on go, as many as there is room for now.
        landed: called with bytes that are there, the next ones of the payload.
    """

    def __init__(
        self,
        size: int,
        memory: Callable[[int], memoryview],
        landed: Callable[[memoryview], None] | None = None,
    ) -> None:
        self.size = size
        self.passed = 0
        """Bytes so far, and where the next chunk starts."""
        self._memory = memory
        self._landed = landed
        self._hash = xxhash.xxh3_128()
        self._lock = threading.Lock()
        self._closed: Callable[[], Exception] | None = None

    @property
    def complete(self) -> bool:
        """Every byte has arrived; whether they are the right ones, `finish` says."""
        return self.passed == self.size

    def check(self, offset: int, data: bytes | memoryview) -> None:
        """See that this is the next chunk.

        Raises:
            Refused: it is not, or there is more in it than was promised.
        """
        if offset != self.passed:
            raise Refused(Refusal.ORDER, f"Found offset {offset} after {self.passed} bytes.")
        if self.passed + len(data) > self.size or self.complete:
            raise Refused(Refusal.TOO_MANY_BYTES, f"Found more than the {self.size} that were promised.")
        if not data:
            raise Refused(Refusal.CHUNK_SIZE, f"Found one after {self.passed} of {self.size} bytes.")

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """The next chunk, all of it, where there is room for the whole payload.

        Raises:
            Refused: as `check`. Nothing has landed then.
        """
        self.check(offset, data)
        rest = memoryview(data)
        while rest:
            rest = rest[self.take(rest) :]

    def take(self, data: memoryview) -> int:
        """Take as many of the next bytes as there is room for; returns their number.

        Raises:
            ValueError: these are more than the payload has.
        """
        if self.passed + len(data) > self.size:
            raise ValueError(f"A payload should have {self.size} bytes. Found more.")

        def copy(memory: memoryview) -> int:
            count = min(len(data), len(memory))
            memory[:count] = data[:count]
            return count

        return self.fill(copy, BLOCK)

    def take_whole(
        self, data: bytes | memoryview, content_digest: bytes, store: Callable[[bytes | memoryview], None]
    ) -> None:
        """All of the payload at once, verified before `store` is called with it where it lies.

        Raises:
            Refused: as `check`, or these are not the bytes that were promised. Nothing is stored then.
        """
        self.check(0, data)
        if len(data) < self.size:
            raise Refused(Refusal.TOO_FEW_BYTES, f"Found {len(data)} of {self.size}.")
        check_digest(content_digest)
        if (found := payload_digest(data)) != content_digest:
            raise _damaged(found, content_digest)
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            store(data)
            self.passed = self.size

    def fill(self, receive: Receive, most: int) -> int:
        """Receive once, at most so many of the next bytes, into the memory where they belong."""
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            memory = self._memory(self.passed)[: min(most, self.size - self.passed)]
            if count := receive(memory):
                piece = memory[:count]
                self._hash.update(piece)
                if self._landed is not None:
                    self._landed(piece)
                self.passed += count
            return count

    def close(self, error: Callable[[], Exception]) -> None:
        """Accept no more bytes from any thread: later ones raise an error that this makes."""
        with self._lock:
            self._closed = error
            # They may be methods of the owner of this sink: that would be a circle, and the memory that
            # it has written to would stay until the garbage collector finds it, many rounds later.
            self._memory, self._landed = _no_memory, None

    def finish(self, content_digest: bytes, whole: memoryview | None = None) -> None:
        """There are no more bytes, and this is what the whole payload should hash to.

        Args:
            content_digest: what it should hash to.
            whole: what should hash to it in place of the payload, which is a part of it.

        Raises:
            Refused: bytes are missing or are not those that were promised.
        """
        if not self.complete:
            raise Refused(Refusal.TOO_FEW_BYTES, f"Found {self.passed} of {self.size}.")
        check_digest(content_digest)
        found = self._hash.digest() if whole is None else payload_digest(whole)
        if found != content_digest:
            raise _damaged(found, content_digest)


def _no_memory(at: int) -> memoryview:
    """The memory of a sink that is closed."""
    return memoryview(b"")


def _damaged(found: bytes, promised: bytes) -> Refused:
    return Refused(Refusal.DIGEST, f"Found {found.hex()}, promised {promised.hex()}.")

"""Adaptive chunk size: how large messages should be on a connection, by its measured speed."""

from __future__ import annotations

from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR, CHUNK_LIMIT

WINDOW = 128 << 10
"""Bytes that buffers on the way may hold: their speed says nothing of the connection."""
FAST, SLOW = 0.25, 1.0
"""Seconds for a message: below the first a larger one is tried, above the second a smaller one."""
GROWTH = 4
HALF_LIFE = 2.0
"""Seconds of sending after which what was before counts half."""


class ChunkSize:
    """The chunk size of one connection: large chunks cost less, but each must arrive in time.

    A connection counts as slow until it was measured to be faster. How long one message took says little:
    buffers on the way swallow several at once, and then none for long. So the speed is that of the last
    seconds.
    """

    def __init__(self) -> None:
        self.most = CHUNK_BYTES
        """Bytes at most, as the other end asked for."""
        self.size = CHUNK_FLOOR
        self._sent = 0
        self._bytes = self._seconds = 0.0

    def set_limit(self, most: int) -> None:
        """Set the size that the other end asks for as the largest."""
        self.most = max(CHUNK_FLOOR, min(most, CHUNK_LIMIT))
        self.size = min(self.size, self.most)

    def record(self, size: int, seconds: float) -> None:
        """Record that a message of so many bytes took so many seconds."""
        self._sent += size
        self._seconds += seconds
        if self._sent < WINDOW:
            return
        self._bytes += size
        if size >= self.size:
            self._adapt(self._seconds * self.size / self._bytes)
        if self._seconds > HALF_LIFE:
            self._bytes, self._seconds = self._bytes / 2, self._seconds / 2

    def stalled(self) -> None:
        """Begin anew with small messages: nothing arrived in time."""
        self.size, self._sent = CHUNK_FLOOR, 0
        self._bytes = self._seconds = 0.0

    def _adapt(self, seconds: float) -> None:
        """Change the size, as messages of the present one take so many seconds."""
        if seconds < FAST:
            self.size = min(self.size * GROWTH, self.most)
        elif seconds > SLOW:
            self.size = max(CHUNK_FLOOR, self.size // GROWTH)

"""How large messages should be on this line."""

from __future__ import annotations

from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR, CHUNK_LIMIT

WINDOW = 128 << 10
"""Bytes that may be on their way before the first has arrived: their speed says nothing of the line."""
BRISK, SLOW = 0.25, 1.0
"""Seconds for a message: below the first a larger one is tried, above the second a smaller one."""
GROWTH = 4
MEMORY = 2.0
"""Seconds of sending after which what was before counts half."""


class ChunkSize:
    """Large messages cost less, but each must arrive before the other end takes us for dead.

    A line is taken to be slow until it has proved otherwise, once. What it has proved holds for later
    messages too. How long one message took says little: buffers on the way swallow several at once, and
    then none for long. So the speed is that of the last seconds.
    """

    def __init__(self) -> None:
        self.most = CHUNK_BYTES
        """What the other end asked for."""
        self.size = CHUNK_FLOOR
        self._sent = 0
        self._bytes = self._seconds = 0.0

    def asked(self, most: int) -> None:
        """The other end says how large messages should be at most."""
        self.most = max(CHUNK_FLOOR, min(most, CHUNK_LIMIT))
        self.size = min(self.size, self.most)

    def took(self, size: int, seconds: float) -> None:
        """A message of so many bytes was on its way for so long."""
        self._sent += size
        self._seconds += seconds
        if self._sent < WINDOW:
            return
        self._bytes += size
        if size >= self.size:
            self._adapt(self._seconds * self.size / self._bytes)
        if self._seconds > MEMORY:
            self._bytes, self._seconds = self._bytes / 2, self._seconds / 2

    def stalled(self) -> None:
        """Nothing arrived in time: begin anew."""
        self.size, self._sent = CHUNK_FLOOR, 0
        self._bytes = self._seconds = 0.0

    def _adapt(self, seconds: float) -> None:
        """Messages as large as now take so long."""
        if seconds < BRISK:
            self.size = min(self.size * GROWTH, self.most)
        elif seconds > SLOW:
            self.size = max(CHUNK_FLOOR, self.size // GROWTH)

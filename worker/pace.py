"""How large messages should be on this line."""

from __future__ import annotations

from varangian.protos.codec import CHUNK_BYTES, CHUNK_FLOOR, CHUNK_LIMIT

WINDOW = 128 << 10
"""Bytes that may be on their way before the first has arrived: their speed says nothing of the line."""
BRISK, SLOW = 0.25, 1.0
"""Seconds for a message: below the first a larger one is tried, above the second a smaller one."""
GROWTH = 4


class Pace:
    """Large messages cost less, but each must arrive before the other end takes us for dead.

    A line is taken to be slow until it has proved otherwise, once. What it has proved holds for later
    messages too.
    """

    def __init__(self) -> None:
        self.most = CHUNK_BYTES
        """What the server asked for."""
        self.size = CHUNK_FLOOR
        self._sent = 0

    def asked(self, most: int) -> None:
        """The server says how large messages should be at most."""
        self.most = max(CHUNK_FLOOR, min(most, CHUNK_LIMIT))
        self.size = min(self.size, self.most)

    def took(self, size: int, seconds: float) -> None:
        """A message of so many bytes was on its way for so long."""
        self._sent += size
        if self._sent < WINDOW or size < self.size:
            return
        if seconds < BRISK:
            self.size = min(self.size * GROWTH, self.most)
        elif seconds > SLOW:
            self.size = max(CHUNK_FLOOR, self.size // GROWTH)

    def stalled(self) -> None:
        """Nothing arrived in time: begin anew."""
        self.size, self._sent = CHUNK_FLOOR, 0

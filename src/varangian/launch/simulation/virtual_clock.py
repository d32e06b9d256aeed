"""Time that passes when somebody says so: an hour of waiting for a deadline takes no time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from varangian.server.rounds.clock import Act, Clock, Timer


@dataclass(order=True)
class _Due:
    at: float
    number: int
    """Of two at the same moment the one that was set first comes first."""
    act: Act = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class VirtualTime:
    """A clock for a driver, and whoever lets its time pass."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds."""
        self.clock = Clock(lambda: self.now, self._call_later)
        self._due: list[_Due] = []
        self._set = 0

    @property
    def next_at(self) -> float | None:
        """When something is due; None if nothing ever is."""
        while self._due and self._due[0].cancelled:
            heapq.heappop(self._due)
        return self._due[0].at if self._due else None

    def advance(self, until: float) -> None:
        """Let time pass, and do in order what is due on the way."""
        while (at := self.next_at) is not None and at <= until:
            due = heapq.heappop(self._due)
            self.now = max(self.now, at)
            due.act()
        self.now = max(self.now, until)

    def _call_later(self, delay: float, act: Act) -> Timer:
        self._set += 1
        due = _Due(self.now + delay, self._set, act)
        heapq.heappush(self._due, due)
        return due

"""A virtual clock: time passes when `advance` is called, so waiting for a deadline takes no time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from varangian.server.rounds.clock import Act, Clock, Timer


@dataclass(order=True)
class _Alarm:
    at: float
    number: int
    """Of two alarms at one time the one that was set first rings first."""
    act: Act = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class VirtualTime:
    """Virtual time: a clock for the coordinator, and `advance` for the simulation."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds."""
        self.clock = Clock(lambda: self.now, self._call_later)
        self._due: list[_Alarm] = []
        self._set = 0

    @property
    def next_at(self) -> float | None:
        """The time of the next alarm; None if there is none."""
        while self._due and self._due[0].cancelled:
            heapq.heappop(self._due)
        return self._due[0].at if self._due else None

    def advance(self, until: float) -> None:
        """Let time pass, and ring the alarms on the way in order."""
        while (at := self.next_at) is not None and at <= until:
            due = heapq.heappop(self._due)
            self.now = max(self.now, at)
            due.act()
        self.now = max(self.now, until)

    def _call_later(self, delay: float, act: Act) -> Timer:
        self._set += 1
        due = _Alarm(self.now + delay, self._set, act)
        heapq.heappush(self._due, due)
        return due

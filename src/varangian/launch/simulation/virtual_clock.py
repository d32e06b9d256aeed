"""A virtual clock: time passes when `advance` is called, so waiting for a deadline takes no time."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        self._due: list[_Alarm] = []
        self._set = 0
        self._kept: float | None = None
        """The time of the alarm that was set when the state was kept, until it is set again."""

    @property
    def clock(self) -> Clock:
        """A clock of this time."""
        return Clock(lambda: self.now, self._call_later)

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

    def state(self) -> dict[str, float | None]:
        """The time, and that of the alarm of the server, for `restore`."""
        return {"now": self.now, "alarm": self.next_at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. The server sets its alarm again, to a delay from now.

        To the last bit the sum of the two is another time than the one that it had.
        """
        self.now, self._kept = state["now"], state["alarm"]

    def _call_later(self, delay: float, act: Act) -> Timer:
        self._set += 1
        at, self._kept = self.now + delay if self._kept is None else self._kept, None
        due = _Alarm(at, self._set, act)
        heapq.heappush(self._due, due)
        return due

"""One torch thread, and a clock that moves when it is told to."""

from __future__ import annotations

import itertools

import pytest
import torch

from varangian.server.rounds.clock import Clock


class Timer:
    def __init__(self, at, act):
        self.at, self.act, self.cancelled = at, act, False

    def cancel(self):
        self.cancelled, self.act = True, None


class FakeTime:
    """Hours pass in no time: `advance` calls what is due, in order."""

    def __init__(self, now: float = 1000.0):
        self.now = now
        self.timers: list[Timer] = []
        self.clock = Clock(lambda: self.now, self.call_later)

    def call_later(self, delay, act):
        timer = Timer(self.now + delay, act)
        self.timers.append(timer)
        return timer

    def waiting(self):
        return [timer for timer in self.timers if not timer.cancelled]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in itertools.count():
            due = min(self.waiting(), key=lambda timer: timer.at, default=None)
            if due is None or due.at > end:
                break
            self.timers.remove(due)
            self.now = max(self.now, due.at)
            due.act()
        self.now = end


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

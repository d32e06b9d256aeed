"""Evidence that a worker might be in time: honest ones are soon heard again, attackers seldom are."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples

from varangian.server.participation.sync import Everyone
from varangian.server.protocol.adaptive_waiting import MOST_EVIDENCE, REST, AdaptiveWaiting
from varangian.server.protocol.events import (
    Absent,
    Close,
    Committed,
    Effect,
    Event,
    Offer,
    Present,
    Push,
    Seconds,
    Skip,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy

NAMES = ("w00", "w01", "w02", "w03")
ODD = NAMES[-1]
"""The worker that is late, or attacks; the others take a second for each round."""
WAITED = 3
"""Rounds that a worker may miss."""
WAITING = AdaptiveWaiting(3.0, 10.0, WAITED)
POLICY = RunPolicy(NAMES, 10**6, 3, 60.0, "wait", 1, waiting=WAITING, selection=Everyone())


class Simulation:
    """Workers that take the newest round whenever they are free, on a clock of its own."""

    def __init__(self, takes: Callable[[int], Seconds]) -> None:
        """`takes` says how long the odd worker computes for a round; never if that is infinite."""
        self.machine = Machine(POLICY)
        self.takes = takes
        self.closed: list[Close] = []
        self.now = 0.0
        self._due: list[tuple[Seconds, str, int]] = []
        self._served = dict.fromkeys(NAMES, -1)

    def play(self, rounds: int, meanwhile: Callable[[int], Iterable[Event]] = lambda round: ()) -> None:
        """Rounds; in each, once the quick ones have begun, what is done `meanwhile`."""
        end, seen = len(self.closed) + rounds, len(self.closed) - 1
        while len(self.closed) < end:
            if self.machine.state.round > seen:
                seen = self.machine.state.round
                self._begin()
                for event in meanwhile(seen):
                    self.handle(event)
                continue
            wake = self.machine.wake_at
            if self._due and (wake is None or self._due[0][0] <= wake):
                self.now, name, round = heapq.heappop(self._due)
                self.handle(Offer(name, round, b"a", self.now))
                self.handle(Push(name, round, b"a", self.now))
                self._begin()
            else:
                assert wake is not None, "nothing can happen any more"
                self.now = wake
                self.handle(Tick(self.now))

    def handle(self, event: Event) -> None:
        effects: Iterable[Effect] = self.machine.handle(event)
        for effect in effects:
            assert not isinstance(effect, Skip)
            if isinstance(effect, Close):
                self.closed.append(effect)
                self.handle(Committed(effect.round, self.now))

    def _begin(self) -> None:
        """All that are free take the open round."""
        busy, round = {name for _, name, _ in self._due}, self.machine.state.round
        for name in NAMES:
            if name not in busy and self._served[name] < round:
                self._served[name] = round
                seconds = self.takes(round) if name == ODD else 1.0
                if seconds < float("inf"):
                    heapq.heappush(self._due, (self.now + seconds, name, round))


def never(round: int) -> Seconds:
    return float("inf")


LIES = st.lists(st.sampled_from(["stale", "back", "both", "often", "nothing"]), min_size=1, max_size=8)


def lie(simulation: Simulation, kind: str, round: int) -> list[Event]:
    """What a worker does that never pushes for the open round."""
    at = simulation.now
    stale = [Offer(ODD, round - 1, b"b", at)] if round else []
    back = [Absent(ODD, at), Present(ODD, at)]
    lies = {"stale": stale, "back": back, "both": [*stale, *back], "often": [*stale, *back] * 10}
    return lies.get(kind, [])


@given(LIES)
@settings(max_examples=examples(40, 5), deadline=None)
def test_who_never_answers_is_waited_for_in_few_rounds_whatever_evidence_it_shows(kinds: list[str]):
    simulation = Simulation(never)
    simulation.play(600, lambda round: lie(simulation, kinds[round % len(kinds)], round))
    waited = [close for close in simulation.closed if close.waited > 1.0]
    # Three rounds at first, and after 1, 2, 4, ... 64, 64, ... pieces; and a patient round now and then.
    again = 2 + MOST_EVIDENCE.bit_length() + (600 - 2 * MOST_EVIDENCE) // MOST_EVIDENCE
    patient = 1 + simulation.now / (REST * POLICY.deadline)
    assert len(waited) <= WAITED * again + patient
    assert sum(close.waited > 10.0 for close in waited) <= patient


def test_the_first_evidence_is_enough_and_later_evidence_buys_less():
    simulation = Simulation(never)
    simulation.play(280, lambda round: 10 * lie(simulation, "stale", round))
    waited = [close.round for close in simulation.closed if close.waited > 1.0]
    quick = [b - a - 1 for a, b in pairwise(waited) if b > a + 1]
    # The last piece is shown in a round that is waited for already.
    assert quick == [n - 1 for n in (2, 4, 8, 16, 32, 64, 64, 64)]
    assert len(waited) == WAITED * (len(quick) + 2), "the first piece is enough"


OUTAGES = st.lists(st.tuples(st.floats(40.0, 90.0), st.integers(8, 20)), min_size=1, max_size=5)
"""Seconds, and rounds from the end of an outage to the next one."""


@given(OUTAGES, st.floats(1.1, 1.4))
@settings(max_examples=examples(100, 10), deadline=None)
def test_who_is_a_little_slower_is_heard_again_within_five_rounds_of_each_outage(
    outages: list[tuple[Seconds, int]], pace: Seconds
):
    stops = dict[int, Seconds]()
    simulation = Simulation(lambda round: pace + stops.get(round, 0.0))
    simulation.play(2)
    for seconds, rounds in outages:
        stops[simulation.machine.state.round + 1] = seconds
        simulation.play(1)
        back, begun = simulation.now + seconds, len(simulation.closed)
        while simulation.now < back:
            simulation.play(1)
        assert all(ODD in close.missing for close in simulation.closed[begun:])
        assert len(simulation.closed) - begun > WAITED
        simulation.play(rounds)
        assert all(ODD in close.workers for close in simulation.closed[5 - rounds :])

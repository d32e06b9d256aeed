"""Deadlines that set themselves: they follow honest workers, whatever fewer than half of them do."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.extent import examples

from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting
from varangian.server.protocol.deadlines import (
    KNOWN,
    RECENT,
    AutoDeadline,
    RoundArrivals,
    after_round,
    notice_late,
)
from varangian.server.protocol.events import (
    Absent,
    Close,
    Committed,
    Effect,
    Event,
    Invite,
    Offer,
    Open,
    Push,
    Ready,
    Seconds,
    Skip,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy, dump_state, restore_state

N, F = 7, 2
NAMES = tuple(f"w{i:02}" for i in range(N))
HONEST = NAMES[: N - F]
FLOOR, CEILING = 5.0, 600.0
AUTO = AutoDeadline(FLOOR)
POLICY = RunPolicy(NAMES, 10**6, N - F, CEILING, "skip", F, auto=AUTO, selection=Everyone())
NEVER = float("inf")


class Rounds:
    """Rounds of workers that take so many seconds; a vector that is late is offered all the same."""

    def __init__(self, policy: RunPolicy = POLICY) -> None:
        self.machine = Machine(policy)
        self.now = 0.0
        self.ended: list[Close | Skip] = []
        self._due: list[tuple[Seconds, str, int]] = []

    def play(self, takes: Mapping[str, Seconds]) -> Close | Skip:
        """One round; how it ended."""
        seen, round = len(self.ended), self.machine.state.round
        for name, seconds in takes.items():
            if seconds < NEVER:
                heapq.heappush(self._due, (self.now + seconds, name, round))
        while len(self.ended) == seen:
            wake = self.machine.wake_at
            if self._due and (wake is None or self._due[0][0] <= wake):
                self.now, name, made_for = heapq.heappop(self._due)
                self.handle(Offer(name, made_for, b"a", self.now))
                self.handle(Push(name, made_for, b"a", self.now))
            else:
                assert wake is not None, "nothing can happen any more"
                self.now = wake
                self.handle(Tick(wake))
        return self.ended[-1]

    def handle(self, event: Event) -> None:
        effects: Sequence[Effect] = self.machine.handle(event)
        for effect in effects:
            if isinstance(effect, Close):
                self.handle(Committed(effect.round, self.now))
            if isinstance(effect, Close | Skip):
                self.ended.append(effect)


def alike(seconds: Seconds, **others: Seconds) -> dict[str, Seconds]:
    return {**dict.fromkeys(NAMES, seconds), **others}


def arrivals_of(*rounds: Mapping[str, Seconds]) -> tuple[RoundArrivals, ...]:
    return tuple(RoundArrivals(round, seconds) for round, seconds in enumerate(rounds, 1))


# The rule

TIMES = st.floats(0.0, 1e6)


@given(st.lists(st.tuples(TIMES, st.booleans()), min_size=1, max_size=40), st.integers(0, 80))
@settings(max_examples=examples(500, 30), deadline=None)
def test_fewer_than_half_of_the_samples_move_a_deadline_only_between_honest_times(samples, skips):
    """The bounds of `deadlines`, for any honest times, and any times of the others."""
    honest = [seconds for seconds, byzantine in samples if not byzantine]
    assume(2 * len(honest) > len(samples))
    rounds = arrivals_of({str(i): seconds for i, (seconds, _) in enumerate(samples)}, {})
    deadline = AUTO.deadline(rounds, CEILING, skips)
    assert FLOOR <= deadline <= CEILING
    lowest, highest = min(honest), max(honest)
    longest = max(FLOOR, highest + 6 * max(1.4826 * (highest - lowest), 0.05 * highest)) * 2.0**skips
    assert min(CEILING, 1.3 * lowest) - 1e-3 <= deadline <= min(CEILING, longest) + 1e-3


def test_a_deadline_is_the_median_and_six_spreads():
    times = {"w00": 10.0, "w01": 11.0, "w02": 12.0, "w03": 13.0, "w04": 20.0}
    expected = 12.0 + 6 * 1.4826 * median([2.0, 1.0, 0.0, 1.0, 8.0])
    assert AUTO.deadline(arrivals_of(times, times), CEILING) == pytest.approx(expected, abs=1e-3)
    assert AUTO.deadline(arrivals_of(alike(10.0), alike(10.0)), CEILING) == 13.0, "a spread of 5 %"


def test_it_is_the_ceiling_until_enough_rounds_are_known_and_doubles_with_each_skipped_round():
    known = arrivals_of(*[alike(10.0)] * KNOWN)
    assert AUTO.deadline(known[:-1], CEILING) == CEILING
    assert [AUTO.deadline(known, CEILING, skips) for skips in (0, 1, 2, 6, 10**6)] == [
        *(13.0, 26.0, 52.0),
        *(CEILING, CEILING),
    ]


def test_only_the_last_rounds_are_remembered_and_an_empty_one_is_none():
    arrivals: tuple[RoundArrivals, ...] = ()
    for round in range(20):
        arrivals = after_round(arrivals, round, alike(1.0), {})
    assert [of.round for of in arrivals] == [*range(20 - RECENT, 20)]
    assert after_round(arrivals, 20, {}, {}) is arrivals


def test_of_a_vector_that_is_late_the_first_time_counts():
    arrivals = after_round((), 3, {"w00": 1.0}, {"w01": 13.0})
    for seconds in (15.0, 90.0):
        arrivals = notice_late(arrivals, "w01", 3, seconds)
    assert arrivals == (RoundArrivals(3, {"w00": 1.0, "w01": 15.0}, {}),)
    assert notice_late(arrivals, "w00", 3, 50.0) == arrivals, "it was in time"


def test_impossible_floors_are_refused():
    with pytest.raises(ValueError, match=r"`floor` should be a positive number of seconds. Found 0.0."):
        AutoDeadline(0.0)
    with pytest.raises(ValueError, match=r"should be at most their ceiling. Found 5.0 and 4.0."):
        replace(POLICY, deadline=4.0)


# In the protocol


def test_a_run_finds_its_deadline_in_three_rounds_and_says_so_in_each():
    rounds = Rounds()
    ended = [rounds.play(alike(10.0)) for _ in range(5)]
    assert [end.deadline for end in ended] == [*[CEILING] * 3, *[13.0] * 2]
    assert Rounds(replace(POLICY, auto=None)).play(alike(10.0)).deadline is None


def test_a_silent_worker_costs_a_deadline_that_fits_the_others():
    rounds = Rounds()
    for _ in range(3):
        rounds.play(alike(10.0))
    end = rounds.play(alike(10.0, w06=NEVER))
    assert (end.waited, end.missing) == (13.0, ("w06",))
    assert "the deadline of 13 s is over and the quorum of 5 is met" in end.because


@pytest.mark.parametrize("shortfall", ["skip", "wait"])
def test_when_all_become_slower_deadlines_follow_them(shortfall):
    rounds = Rounds(replace(POLICY, shortfall=shortfall))
    for _ in range(10):
        rounds.play(alike(10.0))
    ended = [rounds.play(alike(100.0)) for _ in range(12)]
    skipped = [end for end in ended if isinstance(end, Skip)]
    assert len(skipped) == (4 if shortfall == "skip" else 0), "13, 26, 52 and 104 seconds"
    assert all(len(end.workers) == N for end in ended[6:])


def test_when_all_become_faster_deadlines_follow_them():
    rounds = Rounds()
    for seconds in (100.0, 10.0):
        for _ in range(10):
            rounds.play(alike(seconds))
    assert rounds.machine.state.deadline == 13.0


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0.5, 2.0), min_size=N - F, max_size=N - F),
            st.lists(st.sampled_from([0.0, 1.0, 3.0, 70.0, NEVER]), min_size=F, max_size=F),
        ),
        min_size=1,
        max_size=25,
    ),
    st.floats(0.5, 60.0),
)
@settings(max_examples=examples(200, 25), deadline=None)
def test_whatever_f_workers_do_rounds_take_the_time_of_honest_ones(played, pace):
    """Honest times differ by a factor of 4 at the most, and by another one in each round."""
    rounds = Rounds()
    slowest, quickest, skips = 2.0 * pace, 0.5 * pace, 0
    longest = max(FLOOR, slowest + 6 * max(1.4826 * (slowest - quickest), 0.05 * slowest))
    for number, (places, byzantine) in enumerate(played):
        honest = {name: pace * place for name, place in zip(HONEST, places, strict=True)}
        end = rounds.play(honest | dict(zip(NAMES[N - F :], byzantine, strict=True)))
        assert end.deadline is not None
        assert end.waited <= end.deadline + 1e-6
        assert {*end.workers} >= {name for name, seconds in honest.items() if seconds < end.deadline - 1e-6}
        if number > KNOWN:
            assert end.deadline >= min(CEILING, max(FLOOR, 1.3 * quickest)) - 1e-3
            assert end.deadline <= min(CEILING, longest * 2.0**skips) + 1e-3
        skips = skips + 1 if isinstance(end, Skip) else 0


def test_late_vectors_are_known_with_and_without_adaptive_waiting():
    for waiting in (None, AdaptiveWaiting()):
        rounds = Rounds(replace(POLICY, waiting=waiting))
        for _ in range(4):
            rounds.play(alike(10.0))
        rounds.play(alike(10.0, w06=17.0))
        assert rounds.machine.state.arrivals[-1].late == {"w06": 13.0}
        rounds.play(alike(10.0))  # it is offered in the fourth second of this round
        late = [of for of in rounds.machine.state.arrivals if of.round == 4]
        assert (late[0].seconds["w06"], late[0].late) == (pytest.approx(17.0), {})


def test_who_is_absent_has_no_time():
    rounds = Rounds()
    for _ in range(2):
        rounds.play(alike(10.0))
    rounds.handle(Absent("w06", rounds.now))
    rounds.play(alike(10.0, w06=NEVER))
    (_, last) = rounds.machine.state.arrivals
    assert (last.seconds.keys(), last.late) == ({*NAMES} - {"w06"}, {})


def test_by_invitation_the_time_for_gathering_is_part_of_the_sample():
    policy = replace(POLICY, quorum=1, selection=LongestAbsent(k=2, gather=4.0))
    machine, now = Machine(policy), 0.0
    for round in range(3):
        effects = [e for name in NAMES[:3] for e in machine.handle(Ready(name, round, now))]
        effects += machine.handle(Tick(now + 4.0))
        asked = [effect.worker for effect in effects if isinstance(effect, Invite)]
        now += 7.0
        for name in asked:
            machine.handle(Offer(name, round, b"a", now))
            machine.handle(Push(name, round, b"a", now))
        assert machine.handle(Committed(round, now)) == (Open(round + 1),)
    assert {seconds for of in machine.state.arrivals for seconds in of.seconds.values()} == {7.0}


def test_a_vector_of_an_earlier_model_counts_from_its_invitation():
    policy = replace(POLICY, quorum=1, selection=BufferSelection(size=1, tau=5))
    machine = Machine(policy)
    for name in NAMES[:2]:
        machine.handle(Ready(name, 0, 0.0))
    for name, round, model, now in (("w00", 0, 0, 10.0), ("w01", 1, 0, 25.0)):
        machine.handle(Offer(name, model, b"a", now))
        machine.handle(Push(name, model, b"a", now))
        machine.handle(Committed(round, now))
    assert machine.state.arrivals == (RoundArrivals(1, {"w01": 25.0}),)


def test_what_is_known_is_kept_in_a_checkpoint():
    rounds = Rounds()
    for _ in range(4):
        rounds.play(alike(10.0, w06=NEVER))
    assert restore_state(dump_state(rounds.machine.state)) == rounds.machine.state
    assert rounds.machine.state.arrivals

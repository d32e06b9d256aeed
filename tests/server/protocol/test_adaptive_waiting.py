"""Adaptive waiting: a silent worker costs little, a fast one gains nothing, and a slow one is heard."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples

from varangian.server.participation.sync import Everyone
from varangian.server.protocol.adaptive_waiting import REST, AdaptiveWaiting, WaitingHistory
from varangian.server.protocol.events import (
    Close,
    Committed,
    Decline,
    Effect,
    Event,
    Fault,
    Offer,
    Push,
    Skip,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase, RunPolicy

N, F = 7, 2
NAMES = tuple(f"w{i:02}" for i in range(N))
HONEST, BYZANTINE = NAMES[: N - F], NAMES[N - F :]
WAITING = AdaptiveWaiting(3.0, 10.0, 3)
POLICY = RunPolicy(NAMES, 1000, N - F, 60.0, "wait", F, waiting=WAITING, selection=Everyone())
NEVER = float("inf")


@dataclass(frozen=True)
class Act:
    """What a worker does in a round, and how many seconds after its start."""

    after: float
    kind: str = "push"


class Rounds:
    """A machine whose workers act when they are due, and that is ticked when it asks for it."""

    def __init__(self, policy: RunPolicy = POLICY) -> None:
        self.machine = Machine(policy)
        self.now = 0.0

    def play(self, acts: dict[str, Act]) -> Close | Skip:
        """One round; how it ended."""
        round, start = self.machine.state.round, self.now
        due = sorted((start + act.after, name) for name, act in acts.items() if act.after < NEVER)
        while True:
            wake, following = self.machine.wake_at, due[0][0] if due else NEVER
            assert wake is not None or due, "nothing can happen any more"
            if following <= (NEVER if wake is None else wake):
                self.now, name = due.pop(0)
                effects = self._act(name, round, acts[name].kind)
            else:
                assert wake is not None
                self.now = max(self.now, wake)
                effects = self.machine.handle(Tick(self.now))
            for effect in effects:
                if isinstance(effect, Close):
                    assert self.machine.state.phase is Phase.CLOSED
                    self.machine.handle(Committed(round, self.now))
                if isinstance(effect, Close | Skip):
                    return effect

    def _act(self, name: str, round: int, kind: str) -> tuple[Effect, ...]:
        events: dict[str, list[Event]] = {
            "push": [Offer(name, round, b"a", self.now), Push(name, round, b"a", self.now)],
            "fault": [Fault(name, round, "not finite", self.now)],
            "decline": [Decline(name, round, "no data", self.now)],
            "upload": [Offer(name, round, b"a", self.now)],
        }
        busy = name in self.machine.state.uploads
        happened = [self.machine.handle(event) for event in ([] if busy else events[kind])]
        return tuple(effect for effects in happened for effect in effects)


def silent(*names: str, others: float = 1.0) -> dict[str, Act]:
    return {name: Act(NEVER if name in names else others) for name in NAMES}


def test_a_silent_worker_costs_a_deadline_then_the_floor_and_then_nothing():
    rounds = Rounds()
    ended = [rounds.play(silent("w02")) for _ in range(6)]
    assert [end.waited for end in ended] == [60.0, 10.0, 10.0, 1.0, 1.0, 1.0]
    assert [dict(end.not_waited_for) for end in ended] == [
        *[{}] * 3,
        *[{"w02": f"missed the last {count} rounds"} for count in (3, 4, 5)],
    ]
    assert all(end.missing == ("w02",) for end in ended)


def test_as_many_as_f_silent_workers_cost_no_more_than_one():
    rounds = Rounds()
    assert [rounds.play(silent("w02", "w05")).waited for _ in range(4)] == [60.0, 10.0, 10.0, 1.0]


def test_more_than_f_are_waited_for_until_the_deadline():
    rounds = Rounds(replace(POLICY, quorum=4))
    ended = [rounds.play(silent("w01", "w02", "w05")) for _ in range(4)]
    assert [end.waited for end in ended] == [60.0] * 4


def test_after_an_outage_of_everybody_the_first_answers_alone_close_no_round():
    rounds = Rounds(replace(POLICY, quorum=4, shortfall="skip"))
    rounds.play({"w00": Act(0.0, "decline")})
    for _ in range(3):
        rounds.play({})
    fast = dict.fromkeys(NAMES[3:], Act(0.0))
    assert {*rounds.play(dict.fromkeys(NAMES[:3], Act(9.0)) | fast).workers} == {*NAMES}


def test_without_the_settings_every_round_waits_for_its_deadline():
    rounds = Rounds(replace(POLICY, waiting=None))
    assert [rounds.play(silent("w02")).waited for _ in range(5)] == [60.0] * 5


def test_who_is_slow_is_heard_in_patient_rounds_and_these_take_a_tenth_of_the_time_at_the_most():
    rounds = Rounds(replace(POLICY, rounds=5000))
    slow = silent() | {"w02": Act(50.0)}
    ended = [rounds.play(slow) for _ in range(2000)]
    heard = [end for end in ended if "w02" in end.workers]
    assert len(heard) >= rounds.now / (POLICY.deadline * (REST + 3)), "once in ten deadlines or so"
    assert {round(end.waited, 6) for end in ended} <= {1.0, 10.0, 49.0, 50.0}
    patient = sum(end.waited for end in ended if end.waited > 10.0)
    assert patient <= rounds.now / REST + POLICY.deadline


def test_a_worker_that_comes_back_is_waited_for_again():
    rounds = Rounds()
    for _ in range(5):
        rounds.play(silent("w02"))
    assert "w02" in rounds.play(silent() | {"w03": Act(2.0)}).workers
    end = rounds.play(silent() | {"w02": Act(9.0)})
    assert (end.waited, end.missing) == (9.0, ())


def test_waiting_never_shortens_what_a_slow_quorum_of_the_last_rounds_asks_for():
    pace = WaitingHistory(recent=(1.0, 15.0, 2.0))
    assert pace.span(WAITING, 0.1, 60.0) == 45.0
    assert pace.span(WAITING, 30.0, 60.0) == 60.0
    assert WaitingHistory().span(WAITING, 0.1, 60.0) == 10.0
    assert WaitingHistory().span(replace(WAITING, factor=None), 0.1, 60.0) == 60.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"factor": 0.5}, "`factor` should be at least 1 and finite. Found 0.5."),
        ({"factor": float("nan")}, "`factor` should be at least 1 and finite. Found nan."),
        ({"floor": -1.0}, "`floor` should be a number of seconds, at least 0. Found -1.0."),
        ({"rounds": 0}, "`rounds` should be at least 1. Found 0."),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, float], sentence: str):
    with pytest.raises(ValueError, match="should be") as error:
        replace(WAITING, **changes)
    assert str(error.value) == sentence


ANYTHING = st.builds(
    Act,
    st.sampled_from([0.0, 1.0, 5.0, 59.0, 61.0, NEVER]),
    st.sampled_from(["push", "fault", "decline", "upload"]),
)


@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 100.0),
            st.lists(st.floats(0.0, 1.0), min_size=N - F, max_size=N - F),
            st.lists(ANYTHING, min_size=F, max_size=F),
        ),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=examples(400, 30), deadline=None)
def test_no_f_workers_cut_off_an_honest_one_that_is_within_the_factor(played):
    """Whatever f workers do, an honest worker takes part that is within `factor` times what most take.

    Most are the n - 2 f first of them. Times differ from round to round.
    """
    rounds = Rounds()
    for pace, places, acts in played:
        times = sorted(pace * place for place in places)
        bound = min(POLICY.deadline - 1, max(WAITING.floor, 3 * times[N - 2 * F - 1]))
        honest = {name: Act(min(time, 0.99 * bound)) for name, time in zip(HONEST, times, strict=True)}
        end = rounds.play(honest | dict(zip(BYZANTINE, acts, strict=True)))
        assert isinstance(end, Close)
        assert {*HONEST} <= {*end.workers}


@given(
    st.lists(st.lists(ANYTHING, min_size=N, max_size=N), min_size=1, max_size=12),
    st.integers(1, N),
    st.sampled_from(
        [
            WAITING,
            AdaptiveWaiting(1.0, 0.0, 1),
            AdaptiveWaiting(None, 0.0, 2),
            AdaptiveWaiting(2.0, 5.0, None),
        ]
    ),
)
@settings(max_examples=examples(400, 30), deadline=None)
def test_whatever_happens_a_round_keeps_its_promises(history, quorum, waiting):
    """None ends below the quorum or after its deadline, nor before the time of those who are waited for."""
    policy = replace(POLICY, quorum=quorum, waiting=waiting, shortfall="skip", max_skips=1000)
    rounds, missed = Rounds(policy), dict.fromkeys(NAMES, 0)
    for number, acts in enumerate(history):
        given = dict(zip(NAMES, acts, strict=True))
        if number == 0:
            given["w00"] = Act(0.0, "decline")  # somebody has to come for the time of round 0 to begin
        before = rounds.now
        end = rounds.play(given)
        assert rounds.now <= before + policy.deadline
        if isinstance(end, Skip):
            missed = {name: rounds.machine.state.history.missed.get(name, 0) for name in NAMES}
            continue
        answered = len(end.workers) + len(end.faults)
        assert answered >= quorum
        for worker, why in end.not_waited_for.items():
            assert missed[worker] >= (waiting.rounds or NEVER), why
        for worker in {*end.missing} - end.not_waited_for.keys():
            enough = max(quorum, N - F)
            assert end.waited == policy.deadline or answered >= enough
            assert end.waited >= min(policy.deadline, waiting.floor), worker
        missed = {name: missed[name] + 1 if name in end.missing else 0 for name in NAMES}

"""Who is invited: each way to choose by itself, then histories that nobody thought of."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from varangian.aggregators import AggregationError, Aggregator, Mean
from varangian.aggregators.scaled import Scaled
from varangian.registry import ConfigError
from varangian.server.choices import Buffered, Everyone, Oldest, Rotating, oldest, staleness_bound
from varangian.server.events import Tick
from varangian.server.graphs import GRAPHS, Exponential, OnePeer, RandomRegular, Ring
from varangian.server.invitations import (
    Admit,
    Arrival,
    Arrived,
    Began,
    Choice,
    Closed,
    Effect,
    Event,
    Faulty,
    Invite,
    Left,
    Opened,
    ParticipationPolicy,
    Ready,
    Reduce,
    TurnAway,
    Unwelcome,
)
from varangian.server.participation import ParticipationMachine
from varangian.server.staleness import STALENESS, Constant, Hinge, Polynomial

WORKERS = ("w00", "w01", "w02", "w03")


def machine(choice: Choice, workers: tuple[str, ...] = WORKERS, **fields: object) -> ParticipationMachine:
    return ParticipationMachine(ParticipationPolicy(workers, choice, **fields))


def play(machine: ParticipationMachine, *events: Event) -> list[Effect]:
    return [effect for event in events for effect in machine.handle(event)]


def ready(machine: ParticipationMachine, *workers: str, at: float = 0.0) -> list[str]:
    """Who is invited when these ask, one after the other, for the open round."""
    effects = play(machine, *(Ready(worker, machine.state.round, at) for worker in workers))
    return [effect.worker for effect in effects if isinstance(effect, Invite)]


def push(machine: ParticipationMachine, *workers: str, round: int | None = None) -> list[Effect]:
    round = machine.state.round if round is None else round
    at = machine.state.at
    return play(machine, *(e for w in workers for e in (Began(w, round, at), Arrived(w, round, at))))


def reduced(effects: list[Effect]) -> Reduce:
    (found,) = (effect for effect in effects if isinstance(effect, Reduce))
    return found


def turned_away(machine: ParticipationMachine, event: Event) -> Unwelcome:
    """The code of an event that must change nothing."""
    before = machine.state
    (effect,) = machine.handle(event)
    assert machine.state == before
    assert isinstance(effect, TurnAway)
    assert effect.round == before.round
    return effect.code


# Everyone


def test_everyone_is_invited_and_the_round_ends_with_the_last_answer():
    m = machine(Everyone())
    assert ready(m, *WORKERS) == [*WORKERS]
    push(m, "w02", "w00")
    play(m, Faulty("w03", 0, 1.0))
    reduce = reduced(push(m, "w01"))
    assert reduce.arrivals == tuple(Arrival(w, 0, 1.0) for w in ("w00", "w01", "w02"))
    assert reduce.faulty == ("w03",)
    assert reduce.because == "round 0: 4 of 4 answers are there; nobody else is waited for"
    assert ready(m, "w00", "w01") == []  # the next model is about to come
    assert play(m, Opened(1, 2.0)) == [Invite("w00", 1), Invite("w01", 1)]
    assert m.state.faulty == frozenset()


def test_who_asks_again_because_the_answer_was_lost_gets_the_same_answer():
    m = machine(Oldest(k=1))
    assert ready(m, "w00", "w01") == ["w00"]
    before = m.state
    assert play(m, Ready("w00", 0, 0.0)) == [Invite("w00", 0)]
    assert m.state == before


def test_who_has_answered_waits_for_the_next_round():
    m = machine(Everyone())
    ready(m, "w00")
    push(m, "w00")
    assert play(m, Ready("w00", 1, 0.0)) == []
    assert play(m, Closed(0, 1.0)) == []
    assert play(m, Opened(1, 1.0)) == [Invite("w00", 1)]


def test_a_worker_that_wants_a_later_round_is_not_invited_before():
    m = machine(Everyone())
    assert play(m, Ready("w00", 2, 0.0), Opened(1, 1.0)) == []
    assert play(m, Opened(2, 2.0)) == [Invite("w00", 2)]


# Turning away


def test_a_push_without_an_invitation_is_turned_away():
    m = machine(Oldest(k=1))
    assert ready(m, "w00", "w01") == ["w00"]
    for event in (
        Began("w01", 0, 0.0),
        Arrived("w01", 0, 0.0),
        Faulty("w01", 0, 0.0),
        Began("w00", 1, 0.0),
    ):
        assert turned_away(m, event) is Unwelcome.NOT_INVITED
    assert turned_away(m, Began("mallory", 0, 0.0)) is Unwelcome.UNKNOWN_WORKER
    assert turned_away(m, Ready("mallory", 0, 0.0)) is Unwelcome.UNKNOWN_WORKER
    assert play(m, Began("w00", 0, 0.0)) == [Admit("w00", 0)]


def test_a_push_that_counts_is_not_counted_again_but_may_be_retried():
    m = machine(Everyone())
    ready(m, *WORKERS)
    push(m, "w00")
    assert play(m, Began("w00", 0, 0.0)) == [Admit("w00", 0)]  # the round machine knows duplicates
    assert turned_away(m, Arrived("w00", 0, 0.0)) is Unwelcome.NOT_INVITED
    play(m, Faulty("w00", 0, 0.0))  # a second, different one withdraws the first
    assert (dict(m.state.arrived), m.state.faulty) == ({}, {"w00"})
    assert ready(m, "w00") == []


def test_a_push_for_a_round_that_is_over_is_too_old():
    m = machine(Everyone())
    ready(m, "w00", "w01")
    push(m, "w00")
    play(m, Closed(0, 1.0))
    assert turned_away(m, Began("w01", 0, 1.0)) is Unwelcome.TOO_OLD
    play(m, Opened(1, 1.0))
    assert turned_away(m, Arrived("w01", 0, 1.0)) is Unwelcome.TOO_OLD
    assert turned_away(m, Began("w00", 0, 1.0)) is Unwelcome.NOT_INVITED


# Time


def test_at_the_deadline_a_quorum_is_enough():
    m = machine(Everyone(), deadline=10.0, quorum=2)
    assert m.wake_at is None
    ready(m, *WORKERS, at=5.0)
    push(m, "w01")
    assert m.wake_at == 15.0
    assert play(m, Tick(15.0)) == []  # one is not enough
    assert m.wake_at is None
    reduce = reduced(push(m, "w03"))
    assert [a.worker for a in reduce.arrivals] == ["w01", "w03"]
    assert reduce.because == "round 0: 2 of 4 answers are there; the deadline of 10 s is over"
    assert m.wake_at is None


def test_faults_count_for_the_quorum():
    m = machine(Everyone(), deadline=10.0, quorum=2)
    ready(m, *WORKERS)
    push(m, "w01")
    play(m, Faulty("w02", 0, 0.0))
    assert play(m, Tick(9.9)) == []
    assert reduced(play(m, Tick(10.0))).faulty == ("w02",)


def test_the_quorum_is_all_of_a_round_that_has_fewer():
    m = machine(Rotating(Ring().neighbours), deadline=10.0, quorum=4)
    ready(m, *WORKERS)
    push(m, "w00", "w01")
    assert play(m, Tick(10.0)) == []
    assert reduced(push(m, "w03")).round == 0


def test_a_round_that_is_given_up_leaves_only_what_is_young_enough():
    for tau, left in ((0, [{}, {}]), (1, [{"w00": 0}, {}])):
        m = machine(Buffered(size=2, tau=tau))
        ready(m, *WORKERS)
        push(m, "w00")
        for round in (1, 2):
            play(m, Opened(round, 1.0))
            assert dict(m.state.arrived) == left[round - 1]


# Oldest


def test_whoever_was_away_longest_is_chosen_and_ties_go_by_name():
    last = {"w00": 3, "w01": 1, "w03": 1}
    assert oldest(WORKERS, last, 1) == ("w02",)
    assert oldest(WORKERS, last, 3) == ("w01", "w02", "w03")
    assert oldest(("w00", "w03", "w01"), last, 1) == ("w01",)
    assert oldest((), last, 2) == ()
    assert oldest(WORKERS, {}, 2) == ("w00", "w01")


def test_a_seat_that_is_left_goes_to_the_next_but_one_that_is_kept_does_not():
    m = machine(Oldest(k=2))
    assert ready(m, "w00", "w01", "w02", "w03") == ["w00", "w01"]
    assert play(m, Left("w00", 0.0)) == [Invite("w02", 0)]
    push(m, "w01")
    assert play(m, Left("w01", 0.0)) == []  # its vector stays
    assert [a.worker for a in reduced(push(m, "w02")).arrivals] == ["w01", "w02"]


def test_to_be_invited_is_to_participate():
    """Two workers that never answer do not keep the two seats for ever."""
    m = machine(Oldest(k=2), deadline=1.0)
    chosen = [ready(m, *WORKERS)]
    for round in range(3):
        play(m, Closed(round, 0.0), *(Ready(worker, round, 0.0) for worker in WORKERS))
        invited = play(m, Opened(round + 1, 1.0))
        chosen.append([effect.worker for effect in invited if isinstance(effect, Invite)])
    assert chosen == [["w00", "w01"], ["w02", "w03"], ["w00", "w01"], ["w02", "w03"]]


def test_who_was_silent_in_a_round_keeps_no_seat_in_the_next():
    m = machine(Oldest(k=1))
    assert ready(m, "w00", "w01") == ["w00"]
    play(m, Closed(0, 1.0))
    assert play(m, Opened(1, 1.0)) == [Invite("w01", 1)]


def test_the_choice_waits_for_more_to_choose_from():
    m = machine(Oldest(k=1, gather=3.0))
    assert ready(m, "w03", at=1.0) == []
    assert m.wake_at == 4.0
    assert ready(m, "w02", at=2.0) == []
    assert play(m, Tick(4.0)) == [Invite("w02", 0)]
    assert m.wake_at is None
    play(m, Closed(0, 5.0))
    assert play(m, Opened(1, 5.0)) == []  # again some time to come
    assert ready(m, "w00", "w01", at=6.0) == []
    assert play(m, Ready("w02", 1, 6.5)) == [Invite("w00", 1)]  # and now all are there


@st.composite
def availability(draw: st.DrawFn) -> tuple[int, int, int, list[list[int]]]:
    """n, K, E and who is available in each round: everyone at least once in any E rounds in a row."""
    n, every = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    k = draw(st.integers(1, n))
    absent, rounds = [0] * n, []
    for _ in range(draw(st.integers(1, 60))):
        here = [i for i in range(n) if absent[i] == every - 1 or draw(st.booleans())]
        absent = [0 if i in here else absent[i] + 1 for i in range(n)]
        rounds.append(here)
    return n, k, every, rounds


@settings(deadline=None, max_examples=150)
@given(availability())
def test_lemma_1_no_participation_is_longer_ago_than_its_bound(case: tuple[int, int, int, list[list[int]]]):
    n, k, every, rounds = case
    workers = tuple(f"w{i:02}" for i in range(n))
    m = machine(Oldest(k), workers)
    last = dict.fromkeys(workers, -1)
    for t, here in enumerate(rounds):
        # All who are here have asked before the round opens.
        effects = play(m, *(Ready(workers[i], t, t) for i in here)) if t == 0 else []
        if t > 0:
            play(m, Closed(t - 1, t), *(Left(w, t) for w in workers))
            play(m, *(Ready(workers[i], t, t) for i in here))
            effects = play(m, Opened(t, t))
        invited = [e.worker for e in effects if isinstance(e, Invite)]
        if t > 0:  # in round 0 they come one after the other
            assert invited == [*oldest([workers[i] for i in here], last, k)]
        last |= dict.fromkeys(invited, t)
        assert max(t - participation for participation in last.values()) <= staleness_bound(n, k, every)


def test_the_bound_of_lemma_1_is_reached():
    """Who is there only every third round, and last in the order, waits exactly as long as it says."""
    n, k, every = 5, 2, 3
    workers = [f"w{i:02}" for i in range(n)]
    last, worst = dict.fromkeys(workers, -1), 0
    for t in range(90):
        here = workers if t % every == every - 1 else []
        last |= dict.fromkeys(oldest(here, last, k), t)
        worst = max(worst, *(t - participation for participation in last.values()))
    assert worst == staleness_bound(n, k, every) == 8


# Rotating


def test_a_round_is_one_neighbourhood():
    m = machine(Rotating(Ring().neighbours))
    assert ready(m, *WORKERS) == ["w00", "w01", "w03"]
    assert turned_away(m, Began("w02", 0, 0.0)) is Unwelcome.NOT_INVITED
    push(m, "w03", "w00")
    assert reduced(push(m, "w01")).because == "round 0: 3 of 3 answers are there; nobody else is waited for"
    assert play(m, Opened(1, 1.0)) == [Invite("w02", 1)]  # the others have not asked again yet
    assert ready(m, "w03", "w00", "w01") == ["w00", "w01"]


@pytest.mark.parametrize("n", [6, 8, 16])
@pytest.mark.parametrize("graph", [Ring(), Exponential(), OnePeer(), RandomRegular(degree=3)], ids=repr)
def test_everybody_takes_part_equally_often(graph: Ring, n: int):
    rotating = Rotating(graph.neighbours)
    for start in range(0, 5 * n, n):
        counts = [0] * n
        for t in range(start, start + n):
            for i in rotating.members(n, t):
                counts[i] += 1
        assert len(set(counts)) == 1, (start, counts)


def test_a_graph_that_changes_goes_on_once_all_had_their_turn():
    rotating = Rotating(OnePeer().neighbours)
    assert [rotating.members(4, t) for t in range(8)] == [
        (0, 3), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 2), (1, 3),
    ]  # fmt: skip
    assert GRAPHS  # the registry is where a configuration finds them


# Buffered


def test_whoever_comes_gets_the_model_and_the_buffer_is_used_when_it_is_full():
    m = machine(Buffered(size=2, tau=3, staleness=Polynomial(a=1.0)))
    assert ready(m, *WORKERS) == [*WORKERS]
    push(m, "w02")
    assert ready(m, "w02") == []  # one place each: not before its vector is used
    assert turned_away(m, Began("w02", 1, 0.0)) is Unwelcome.NOT_INVITED
    assert [a.age for a in reduced(push(m, "w00")).arrivals] == [0, 0]
    assert play(m, Opened(1, 1.0)) == [Invite("w02", 1)]
    push(m, "w01", round=0)
    reduce = reduced(push(m, "w02", round=1))
    assert reduce.arrivals == (Arrival("w01", 1, 0.5), Arrival("w02", 0, 1.0))


def test_what_arrives_while_others_are_aggregated_waits_for_the_next_time():
    m = machine(Buffered(size=2, tau=1))
    ready(m, *WORKERS)
    reduced(push(m, "w00", "w01"))
    assert push(m, "w02", "w03") == [Admit("w02", 0), Admit("w03", 0)]
    (reduce,) = play(m, Opened(1, 1.0))
    assert isinstance(reduce, Reduce)
    assert reduce.arrivals == (Arrival("w02", 1, 1.0), Arrival("w03", 1, 1.0))


def test_what_would_be_older_than_tau_is_turned_away():
    m = machine(Buffered(size=1, tau=1))
    ready(m, "w00", "w01")
    for round in range(2):
        reduced(push(m, "w00", round=round))
        if round == 0:
            assert play(m, Ready("w00", 1, 0.0), Opened(1, 1.0)) == [Invite("w00", 1)]
    # Round 1 is being aggregated, so this would be used in round 2.
    assert turned_away(m, Arrived("w01", 0, 1.0)) is Unwelcome.TOO_OLD
    assert play(m, Ready("w01", 0, 1.0), Opened(2, 2.0)) == [Invite("w01", 2)]


def test_who_asks_for_a_newer_model_gives_the_old_one_up():
    m = machine(Buffered(size=1, tau=5))
    ready(m, "w00", "w01")
    push(m, "w00")
    play(m, Opened(1, 1.0))
    assert ready(m, "w01") == ["w01"]
    assert turned_away(m, Arrived("w01", 0, 1.0)) is Unwelcome.NOT_INVITED


def test_a_buffer_that_does_not_fill_is_used_at_the_deadline():
    m = machine(Buffered(size=4, tau=1), deadline=10.0, quorum=1)
    ready(m, *WORKERS)
    push(m, "w01")
    play(m, *(Left(worker, 1.0) for worker in WORKERS))
    assert [a.worker for a in reduced(play(m, Tick(10.0))).arrivals] == ["w01"]


# Staleness weights


def test_weights_by_age():
    assert [Constant().factor(age) for age in (0, 9)] == [1, 1]
    assert [Polynomial().factor(age) for age in (0, 3)] == [1, 0.5]
    assert [Hinge(a=2, b=4).factor(age) for age in (0, 4, 5, 6)] == [1, 1, 1 / 3, 1 / 5]
    assert [*STALENESS] == ["constant", "hinge", "polynomial"]


@pytest.mark.parametrize("name", [*STALENESS])
def test_nothing_counts_more_for_being_older(name: str):
    factors = [STALENESS.build(name, "weight").factor(age) for age in range(30)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"polynomial": {"a": 0.0}}, "`a` should be positive"),
        ({"hinge": {"a": math.inf}}, "`a` should be positive and finite"),
        ({"hinge": {"b": -1}}, "`b` should be a number of rounds, at least 0. Found -1"),
    ],
)
def test_bad_weights(spec: object, sentence: str):
    with pytest.raises(ConfigError) as error:
        STALENESS.build(spec, "staleness")
    assert sentence in str(error.value)


def test_rows_are_scaled_by_their_factors_before_any_rule():
    rows, r = torch.tensor([[2.0, 4.0], [6.0, 8.0]]), torch.tensor([5.0, -3.0])
    scaled = Aggregator(Mean(), mix=(Scaled((0.5, 1.0)),))(rows, r)
    assert torch.allclose(scaled.vector, torch.tensor([3.5, 5.0]))
    assert Scaled((0.5, 1.0)).outputs(2) == 2
    with pytest.raises(AggregationError, match=r"each of the 2 rows that are left\. Found 1"):
        Aggregator(Mean(), mix=(Scaled((0.5,)),))(rows)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Scaled((1.5,))


# Policies


@pytest.mark.parametrize(
    ("choice", "fields", "sentence"),
    [
        (Oldest(k=0), {}, "`k` should be between 1 and n = 4, as many as are chosen in a round. Found 0."),
        (Oldest(k=5), {}, "`k` should be between 1 and n = 4, as many as are chosen in a round. Found 5."),
        (Oldest(k=1, gather=-1.0), {}, "`gather` should be a number of seconds, at least 0. Found -1.0."),
        (
            Buffered(size=5, tau=1),
            {},
            "`size` should be between 1 and n = 4: a worker has one place. Found 5.",
        ),
        (Buffered(size=1, tau=-1), {}, "`tau` should be a number of rounds, at least 0. Found -1."),
        (Everyone(), {"quorum": 5}, "`quorum` should be between 1 and n = 4. Found 5."),
        (Everyone(), {"deadline": 0.0}, "`deadline` should be a positive number of seconds. Found 0.0."),
        (Everyone(), {"workers": ("w00", "w00")}, "`workers` should be different names, at least one."),
    ],
)
def test_bad_policies(choice: Choice, fields: dict[str, object], sentence: str):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ParticipationPolicy(**{"workers": WORKERS, "choice": choice} | fields)


# Histories


CHOICES = (
    Everyone(),
    Oldest(k=2),
    Oldest(k=3, gather=2.0),
    Rotating(Ring().neighbours),
    Buffered(size=2, tau=0),
    Buffered(size=3, tau=2, staleness=Polynomial()),
)
names = st.sampled_from(WORKERS)


class Histories(RuleBasedStateMachine):
    """Workers that ask, push, fail, leave and return in any order, with or without being invited."""

    @initialize(choice=st.sampled_from(CHOICES))
    def start(self, choice: Choice) -> None:
        self.machine = machine(choice, deadline=5.0, quorum=2)
        self.now = 0.0
        self.open = True
        self.invitations: set[tuple[str, int]] = set()
        self.waiting: dict[str, int] = {}
        """Whose vector has arrived and was not used, and the round of its model."""

    def say(self, event: Event) -> tuple[Effect, ...]:
        before = self.machine.state
        effects = self.machine.handle(event)
        if any(isinstance(effect, TurnAway) for effect in effects):
            assert (self.machine.state, len(effects)) == (before, 1)
        for effect in effects:
            self.see(effect)
        return effects

    def see(self, effect: Effect) -> None:
        if isinstance(effect, Invite):
            assert effect.round == self.machine.state.round
            assert self.open
            assert effect.worker not in self.waiting  # one place each
            self.invitations.add((effect.worker, effect.round))
        if isinstance(effect, Reduce):
            assert self.open
            self.open = False
            for arrival in effect.arrivals:
                age = effect.round - self.waiting.pop(arrival.worker)
                assert age == arrival.age <= self.machine.policy.choice.tau
            assert not self.waiting

    @rule(worker=names, later=st.sampled_from([0, 0, 0, 1]))
    def ask(self, worker: str, later: int) -> None:
        self.say(Ready(worker, self.machine.state.round + later, self.now))

    @rule(worker=names, back=st.integers(0, 3))
    def push(self, worker: str, back: int) -> None:
        round = self.machine.state.round - back
        admitted = self.say(Began(worker, round, self.now)) == (Admit(worker, round),)
        if worker in self.waiting or not admitted:
            return
        assert (worker, round) in self.invitations
        self.waiting[worker] = round
        effects = self.say(Arrived(worker, round, self.now))
        assert not any(isinstance(effect, TurnAway) for effect in effects)

    @rule(worker=names, back=st.integers(0, 3))
    def fail(self, worker: str, back: int) -> None:
        state = self.machine.state
        round = state.round - back
        counted = state.arrived.get(worker) == round and worker not in state.taken
        before = self.waiting.pop(worker, None) if counted else None
        effects = self.say(Faulty(worker, round, self.now))
        assert before is None or not any(isinstance(effect, TurnAway) for effect in effects)

    @rule(worker=names)
    def leave(self, worker: str) -> None:
        self.say(Left(worker, self.now))

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.say(Tick(self.now))

    @rule()
    def open_next(self) -> None:
        if not self.open:
            self.open = True
            round = self.machine.state.round + 1
            tau = self.machine.policy.choice.tau
            self.waiting = {w: v for w, v in self.waiting.items() if round - v <= tau}
            self.say(Opened(round, self.now))

    @invariant()
    def seats_are_not_given_twice(self) -> None:
        state = self.machine.state
        current = [w for w, round in state.invited.items() if round == state.round]
        if isinstance(choice := self.machine.policy.choice, Oldest):
            assert len(current) + len(state.arrived) + len(state.faulty) <= max(choice.k, len(state.taken))
        assert not state.invited.keys() & state.arrived.keys()
        assert not state.parked.keys() & set(current)
        assert self.open != state.reducing
        assert self.machine.wake_at is None or self.machine.wake_at > state.at

    def teardown(self) -> None:
        """Whatever has happened: if all come back and do their work, the next rounds come to an end."""
        if not hasattr(self, "machine"):
            return
        for _ in range(3):
            self.open_next()
            round = self.machine.state.round
            for worker in WORKERS:
                self.ask(worker, 0)
            for worker in WORKERS:
                self.push(worker, 0)
            while self.open and (moment := self.machine.wake_at) is not None:
                self.wait(moment - self.now)
                for worker in WORKERS:
                    self.push(worker, 0)
            assert not self.open, self.machine.state
            assert self.machine.state.round in (round, round + 1)


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_a_policy_keeps_names_in_order():
    policy = ParticipationPolicy(tuple(reversed(WORKERS)), Everyone())
    assert policy.workers == WORKERS
    assert replace(policy, quorum=4).quorum == 4

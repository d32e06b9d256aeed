"""Participation when columns are forgotten: the protocol alone, step by step, and at random."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.extent import examples

from varangian.protos.refusals import Refusal
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.state import RunPolicy
from varangian.server.protocol.window import Window

NAMES = ("w00", "w01", "w02", "w03")
BLOCK, BLOCKS, D = 10, 3, 65
PATIENCE = 5.0


def window(quorum: int = 3) -> Window:
    policy = RunPolicy(NAMES, 9, quorum, 60.0, "wait", 1, selection=Everyone())
    opened = Window(policy, D, BLOCK, BLOCKS, PATIENCE)
    opened.begin(0)
    return opened


def offered(w: Window, *workers: str, at: float = 0.0) -> Window:
    for worker in workers:
        assert w.refuses(worker) is None
        w.offer(worker, at)
    return w


def came(w: Window, columns: int, *workers: str) -> None:
    for worker in workers or NAMES:
        w.receive(worker, columns)


def test_a_round_from_the_first_offer_to_the_last_column():
    w = offered(window(), *NAMES)
    assert w.fixed
    assert (w.limit, w.ready) == (30, 0)
    came(w, 25)
    assert w.ready == 20
    w.reduce_to(20, 1.0)
    assert (w.base, w.limit) == (20, 50)
    came(w, D)
    assert w.ready == D
    w.reduce_to(D, 2.0)
    for worker in NAMES:
        assert not w.settled
        w.complete(worker)
    assert w.settled
    assert w.wake_at is None
    assert w.refuses("w00") is None, "the round itself says what became of it"


def test_nothing_is_reduced_before_the_members_are_fixed():
    w = offered(window(), *NAMES[:3])
    came(w, 30, *NAMES[:3])
    assert (w.fixed, w.ready, w.limit) == (False, 0, 30)
    offered(w, "w03", at=3.0)
    came(w, 10, "w03")
    assert (w.fixed, w.ready) == (True, 10)


def test_a_member_that_was_complete_and_is_withdrawn_is_not_waited_for():
    """A small vector is whole before the members are fixed."""
    w = offered(window(), "w03")
    came(w, 30, "w03")
    w.complete("w03")
    w.lose("w03", 1.0)
    w.set_aside({"w03"}, 1.0)
    offered(w, *NAMES[:3], at=2.0)
    assert w.fixed
    came(w, D)
    w.reduce_to(D, 3.0)
    for worker in NAMES[:3]:
        w.complete(worker)
    assert w.settled


def test_after_a_while_a_quorum_is_enough_and_who_comes_later_is_too_late():
    w = offered(window(), *NAMES[:3], at=1.0)
    assert w.wake_at == 6.0
    w.tick(5.9)
    assert not w.fixed
    w.tick(6.0)
    assert w.fixed
    assert w.refuses("w03") is Refusal.STALE
    assert w.refuses("w00") is None


def test_below_the_quorum_it_waits_for_as_long_as_it_takes():
    w = offered(window(), *NAMES[:2])
    w.tick(5.0)
    assert (w.fixed, w.wake_at) == (False, None)
    offered(w, "w03", at=99.0)
    assert w.fixed


def test_who_goes_before_the_members_are_fixed_costs_nothing():
    w = offered(window(), *NAMES[:3])
    attempt = w.attempt
    w.lose("w01", 1.0)
    offered(w, "w01", "w03", at=2.0)
    assert (w.fixed, w.attempt) == (True, attempt)


def test_who_fails_later_costs_one_attempt_and_is_left_out():
    w = offered(window(), *NAMES)
    came(w, 30)
    w.reduce_to(10, 1.0)
    attempt = w.attempt
    w.lose("w01", 2.0)
    assert w.attempt > attempt
    assert (w.fixed, w.base, w.columns) == (False, 0, {})
    assert w.refuses("w01") is Refusal.STALE
    offered(w, "w00", "w02", "w03", at=3.0)
    assert w.fixed
    w.begin(1)
    assert w.refuses("w01") is None


def test_when_too_few_would_be_left_all_may_come_again():
    w = offered(window(quorum=4), *NAMES)
    w.lose("w01", 2.0)
    assert w.refuses("w01") is None
    offered(w, *NAMES, at=3.0)
    assert w.fixed


def test_who_proves_faulty_counts_for_the_quorum_and_not_as_a_member():
    w = offered(window(quorum=4), *NAMES)
    w.convict({"w03"}, 1.0)
    assert not w.fixed
    offered(w, *NAMES[:3], at=2.0)
    assert (w.fixed, set(w.columns)) == (True, set(NAMES[:3]))


def test_a_fault_before_anything_is_fixed_makes_everyone_be_there():
    w = offered(window(), *NAMES[:3])
    w.convict({"w03"}, 1.0)
    assert w.fixed


def test_the_slowest_is_not_waited_for_for_ever():
    w = offered(window(), *NAMES)
    came(w, 30, *NAMES[:3])
    came(w, 9, "w03")
    w.tick(4.9)
    assert w.fixed
    w.tick(5.0)
    assert (w.fixed, w.refuses("w03")) == (False, Refusal.STALE)
    assert w.refuses("w00") is None


def test_progress_is_what_patience_is_counted_from():
    w = offered(window(), *NAMES)
    came(w, 10)
    w.reduce_to(10, 4.0)
    assert w.wake_at == 9.0
    w.tick(5.0)
    assert w.fixed


def test_patience_may_be_that_of_the_round():
    w = window()
    w.begin(1, 2.0)
    assert offered(w, *NAMES).wake_at == 2.0
    w.begin(2)
    assert offered(w, *NAMES, at=10.0).wake_at == 12.0


def test_nobody_is_to_blame_when_it_is_our_turn():
    w = offered(window(), *NAMES)
    came(w, 10)
    w.tick(5.0)
    assert (w.fixed, w.wake_at) == (True, 10.0)


def test_who_sends_all_and_does_not_say_that_it_is_right():
    w = offered(window(), *NAMES)
    came(w, D)
    w.reduce_to(D, 1.0)
    for worker in NAMES[1:]:
        w.complete(worker)
    w.tick(6.0)
    assert w.refuses("w00") is Refusal.STALE


def test_a_worker_of_another_attempt_changes_nothing():
    w = offered(window(), *NAMES)
    w.lose("w01", 1.0)
    attempt = w.attempt
    for worker in NAMES:
        w.receive(worker, D)
        w.complete(worker)
        w.lose(worker, 1.0)
    assert (w.attempt, w.columns) == (attempt, {})


class Anything(RuleBasedStateMachine):
    """Whatever happens: nothing is reduced twice or too early, and all members count or none."""

    def __init__(self):
        super().__init__()
        self.w = window()
        self.now, self.failed, self.attempts = 0.0, set[str](), 1
        self.first = self.w.attempt

    workers = st.sampled_from(NAMES)

    @precondition(lambda self: not self.w.settled)
    @rule(worker=workers)
    def offer(self, worker):
        if worker not in self.w.columns and self.w.refuses(worker) is None and worker not in self.w.faulty:
            self.w.offer(worker, self.now)

    @rule(worker=workers, more=st.integers(1, 30))
    def come(self, worker, more):
        if worker in self.w.columns:
            self.w.receive(worker, min(self.w.columns[worker] + more, self.w.limit))

    @rule(worker=workers)
    def complete(self, worker):
        if self.w.columns.get(worker) == D:
            self.w.complete(worker)

    @rule(worker=workers)
    def lose(self, worker):
        self.w.lose(worker, self.now)

    @rule(worker=workers)
    def fail(self, worker):
        self.w.fail(worker, self.now)

    @rule(worker=workers)
    def clear(self, worker):
        self.w.clear(worker, self.now)

    @precondition(lambda self: not self.w.settled)
    @rule(worker=workers)
    def prove(self, worker):
        if not self.w.faulty:
            self.w.convict({worker}, self.now)

    @rule(seconds=st.floats(0, 7))
    def wait(self, seconds):
        self.now += seconds
        self.w.tick(self.now)

    @rule()
    def reduce(self):
        if self.w.ready > self.w.base:
            stop = min(self.w.base + BLOCK, D)
            assert all(columns >= stop for columns in self.w.columns.values())
            self.w.reduce_to(stop, self.now)

    @invariant()
    def sound(self):
        w = self.w
        assert w.base <= w.ready <= D
        assert all(columns <= w.limit for columns in w.columns.values())
        assert w.fixed or w.base == 0
        if w.fixed:
            assert len(w.columns) + len(w.faulty) >= 3
            assert not w.faulty & w.columns.keys()
        if w.settled:
            assert w.base == D
            assert set(w.columns.values()) == {D}


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=examples(60), deadline=None)


@pytest.mark.parametrize("columns", [0, 9, 10, 64, 65])
def test_what_is_ready_ends_at_a_block_or_at_the_end(columns: int):
    w = offered(window(), *NAMES)
    w.base = 40
    came(w, columns)
    assert w.ready in (0, 10, 60, 65)

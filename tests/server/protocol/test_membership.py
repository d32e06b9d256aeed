"""Workers that come and go for good while a run goes on: nothing of a round is lost, and no f is spent."""

from dataclasses import replace

import pytest
from tests.server.protocol.kit import WORKERS, A, B, play, refusal

from varangian.protos.refusals import Refusal
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.events import (
    Absent,
    Close,
    Committed,
    Drain,
    Fault,
    Forget,
    Invite,
    Members,
    Offer,
    Open,
    Present,
    Push,
    Ready,
    Tick,
    Withdraw,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy

POLICY = RunPolicy(WORKERS, 10, 3, 60.0, "wait", 1, selection=Everyone())


def pushes(*workers, round=0, at=1.0):
    return [event for w in workers for event in (Offer(w, round, A, at), Push(w, round, A, at))]


def following(machine, workers, **changes):
    changes = {"quorum": min(machine.policy.quorum, len(workers)), **changes}
    return machine.follow(replace(machine.policy, workers=workers, **changes))


def test_a_change_takes_effect_when_the_next_round_opens():
    machine = Machine(POLICY)
    play(machine, *pushes("w00"))
    assert following(machine, ("w00", "w01", "w04")) == 1
    assert machine.policy.workers == WORKERS
    assert refusal(machine, Offer("w04", 0, A, 1.0)) is Refusal.UNKNOWN_WORKER
    close = play(machine, *pushes("w01", "w02", "w03"))[-1]
    assert isinstance(close, Close)
    assert close.workers == WORKERS
    members, opened = machine.handle(Committed(0, 2.0))
    gone, three = ("w02", "w03"), ("w00", "w01", "w04")
    assert members == Members(1, ("w04",), gone, three, quorum=3, f=1)
    assert opened == Open(1)
    assert machine.policy.workers == three
    assert refusal(machine, Offer("w02", 1, A, 2.0)) is Refusal.UNKNOWN_WORKER


def test_whoever_was_admitted_is_waited_for_once_it_is_there():
    machine = Machine(POLICY)
    following(machine, (*WORKERS, "w04"))
    play(machine, *pushes(*WORKERS), Committed(0, 2.0))
    assert machine.state.absent == {"w04"}
    assert isinstance(play(machine, *pushes(*WORKERS, round=1, at=3.0))[-1], Close)
    play(machine, Committed(1, 4.0), Present("w04", 4.0))
    assert not any(isinstance(e, Close) for e in play(machine, *pushes(*WORKERS, round=2, at=5.0)))
    assert isinstance(play(machine, *pushes("w04", round=2, at=6.0))[-1], Close)


def test_the_vector_of_a_worker_that_is_drained_counts_in_the_open_round():
    machine = Machine(POLICY)
    play(machine, *pushes("w00", "w01"))
    following(machine, WORKERS[:3])
    play(machine, Drain("w03", 1.0), *pushes("w02"))
    assert machine.state.closed is None  # it may have the model of this round
    close = play(machine, *pushes("w03"))[-1]
    assert isinstance(close, Close)
    assert close.workers == WORKERS
    play(machine, Committed(0, 2.0))
    assert machine.state.held == {}


def test_nothing_counts_of_a_worker_that_is_expelled():
    machine = Machine(POLICY)
    play(machine, *pushes("w00", "w01", "w03"))
    following(machine, WORKERS[:3])
    effects = play(machine, Drain("w03", 1.0), Withdraw("w03", "expelled", 1.0))
    assert Forget("w03") in effects
    close = play(machine, *pushes("w02"))[-1]
    assert isinstance(close, Close)
    assert (close.workers, close.faults, close.revoked) == (WORKERS[:3], {}, ("w03",))
    members, _ = machine.handle(Committed(0, 2.0))
    assert (members.gone, members.f) == (("w03",), 1)
    assert machine.state.revoked == {}


@pytest.mark.parametrize("round", [0, 1])
def test_leaving_spends_none_of_the_f(round):
    """Nor does a fault follow a worker that is gone into the next round."""
    machine = Machine(POLICY)
    play(machine, *pushes("w00", "w01", "w02"))
    following(machine, WORKERS[:3])
    play(machine, Drain("w03", 1.0), Fault("w03", 0, "not finite", 1.0))
    if round == 0:
        assert machine.state.closed.faults == {"w03": "not finite"}
    else:
        play(machine, Committed(0, 2.0))
        assert (machine.state.faults, machine.state.accused) == ({}, {})


def invited(k=2, gather=0.0):
    policy = replace(POLICY, quorum=1, selection=LongestAbsent(k, gather))
    return Machine(policy)


def test_a_worker_that_is_drained_is_not_invited_again():
    machine = invited()
    play(machine, *(Ready(w, 0, 0.0) for w in WORKERS[:2]))
    assert machine.state.invited.keys() == {"w00", "w01"}
    following(machine, ("w00", "w01", "w02"))
    play(machine, Drain("w03", 1.0))
    assert play(machine, Ready("w03", 0, 1.0)) == []
    assert (machine.state.parked, machine.state.absent) == ({}, {"w03"})
    play(machine, *pushes("w00", "w01"), Committed(0, 2.0))
    assert machine.state.absent == frozenset()
    assert refusal(machine, Ready("w03", 0, 2.0)) is Refusal.UNKNOWN_WORKER


def test_the_answer_of_an_invited_worker_that_leaves_is_given_again():
    machine = invited()
    play(machine, *(Ready(w, 0, 0.0) for w in WORKERS[:2]))
    following(machine, WORKERS[1:])
    play(machine, Drain("w00", 1.0))
    assert play(machine, Ready("w00", 0, 1.0)) == [Invite("w00", 0)]


def test_a_round_does_not_gather_for_whoever_leaves():
    machine = invited(k=2, gather=30.0)
    play(machine, *(Ready(w, 0, 0.0) for w in WORKERS[:3]))
    assert machine.state.invited == {}
    following(machine, WORKERS[:3])
    assert [e.worker for e in play(machine, Drain("w03", 1.0))] == ["w00", "w01"]


def test_rounds_that_are_skipped_one_after_the_other_go_by_their_own_members():
    machine = Machine(replace(POLICY, shortfall="skip"))
    play(machine, *pushes("w00"))
    following(machine, ("w00",), f=0)
    effects = play(machine, Tick(100.0))
    assert [type(e).__name__ for e in effects] == ["Skip", "Members", "Open"]
    assert isinstance(play(machine, *pushes("w00", round=1, at=101.0))[-1], Close)


def test_a_run_without_its_quorum_goes_on_when_dead_workers_are_left_out():
    machine = Machine(POLICY)
    play(machine, *pushes("w00", "w01"), Absent("w02", 1.0), Absent("w03", 1.0), Tick(100.0))
    assert machine.state.overdue
    following(machine, ("w00", "w01"), f=0)
    effects = machine.handle(Drain("w02", 200.0))
    assert [type(effect).__name__ for effect in effects] == ["Skip", "Members", "Open"]
    assert isinstance(play(machine, *pushes("w00", "w01", round=1, at=201.0))[-1], Close)


def test_a_later_change_stands_in_the_place_of_one_that_is_to_come():
    machine = Machine(POLICY)
    following(machine, WORKERS[:3])
    following(machine, ("w00", "w01", "w02", "w05"))
    play(machine, *pushes(*WORKERS))
    members, _ = machine.handle(Committed(0, 2.0))
    assert (members.admitted, members.gone) == (("w05",), ("w03",))


def test_no_change_is_left_at_the_end_of_a_run():
    machine = Machine(replace(POLICY, rounds=1))
    following(machine, WORKERS[:3])
    effects = play(machine, *pushes(*WORKERS), Committed(0, 2.0))
    assert not any(isinstance(effect, Members) for effect in effects)


def test_a_vector_of_a_worker_that_is_gone_is_refused_in_the_middle():
    machine = Machine(replace(POLICY, quorum=3))
    play(machine, *pushes("w00", "w01", "w02"), Offer("w03", 0, B, 1.0))
    following(machine, WORKERS[:3])
    play(machine, Drain("w03", 1.0), Tick(100.0), Committed(0, 101.0))
    assert machine.refusal("w03", 0) is Refusal.UNKNOWN_WORKER
    assert refusal(machine, Push("w03", 0, B, 101.0)) is Refusal.UNKNOWN_WORKER
    assert machine.state.uploads == {}

"""What another process of the server begins with, and how its first round waits."""

from __future__ import annotations

import pytest
from tests.server.protocol.kit import WORKERS, A, play

from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting
from varangian.server.protocol.events import (
    Absent,
    Close,
    Committed,
    Effect,
    Fault,
    Finish,
    Invite,
    Offer,
    Open,
    Push,
    Ready,
    Stop,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase, RunPolicy, Selection

DEADLINE = 100.0


def machine(choice: Selection, **fields: object) -> Machine:
    usual = {"rounds": 100, "quorum": 1, "deadline": DEADLINE, "shortfall": "wait", "f": 1}
    return Machine(RunPolicy(WORKERS, **usual | fields, selection=choice))


def answer(machine: Machine, *workers: str, at: float = 0.0) -> list[Effect]:
    """These ask for the open round, and who may pushes for it."""
    effects: list[Effect] = []
    round = machine.state.round
    if machine.by_invitation:
        effects += play(machine, *(Ready(worker, round, at) for worker in workers))
    for worker in workers if not machine.by_invitation else [*machine.state.invited]:
        effects += play(machine, Offer(worker, round, A, at), Push(worker, round, A, at))
    return effects


def again(before: Machine) -> Machine:
    """Another process that goes on from what this one has kept."""
    after = Machine(before.policy)
    after.restore(before.dump(), connected=False)
    return after


def played(choice: Selection, rounds: int = 3, **fields: object) -> Machine:
    """A machine at the border of a round."""
    before = machine(choice, **fields)
    for round in range(rounds):
        answer(before, *WORKERS, at=10.0 * round)
        if before.state.phase is Phase.OPEN:
            play(before, Tick(10.0 * round + DEADLINE))
        play(before, Committed(round, before.state.at))
    assert before.state.round == rounds
    return before


def invited(effects: list[Effect]) -> list[str]:
    return [effect.worker for effect in effects if isinstance(effect, Invite)]


@pytest.mark.parametrize("choice", [Everyone(), LongestAbsent(k=2), BufferSelection(4, 1)])
def test_with_its_connections_a_machine_goes_on_as_it_was(choice: Selection):
    before = played(choice)
    answer(before, "w00", "w01", at=40.0)
    after = Machine(before.policy)
    after.restore(before.dump(), connected=True)
    assert after.state == before.state


def test_no_time_of_another_process_is_left():
    after = again(played(Everyone(), waiting=AdaptiveWaiting()))
    state = after.state
    assert (state.round, state.first, state.opened_at, after.wake_at) == (3, 3, None, None)
    assert (state.history.opened_at, state.history.rested_at) == (None, None)
    assert answer(after, "w00", at=1.0)
    assert after.state.opened_at == 1.0, "its clock begins with the first worker, as that of round 0"


def test_the_first_round_waits_for_those_that_are_slow_to_come_back():
    waiting = AdaptiveWaiting(factor=2.0, floor=1.0)
    after = again(played(Everyone(), quorum=3, waiting=waiting))
    answer(after, "w00", "w01", "w02", at=0.0)
    assert not [effect for effect in play(after, Tick(50.0)) if isinstance(effect, Close)]
    (end,) = (effect for effect in answer(after, "w03", at=60.0) if isinstance(effect, Close))
    assert (end.workers, end.missing) == (WORKERS, ())
    play(after, Committed(3, 60.0))
    assert not after.state.is_first
    assert after.state.history.recent == (10.0, 10.0), "what a restart takes is no pace"


def test_the_same_are_selected_as_without_the_interruption():
    """Whether an invitation to the round was given already when the state was kept, or not."""
    before = played(LongestAbsent(k=2), rounds=3)
    kept = again(before)
    invitations = play(before, *(Ready(worker, 3, 30.0) for worker in WORKERS))
    selected = sorted(invited(invitations))
    assert len(selected) == 2
    for after in (kept, again(before)):
        assert after.state.last.keys() <= {*WORKERS}
        found = play(after, *(Ready(worker, 3, 0.0) for worker in reversed(WORKERS)))
        assert sorted(invited(found)) == selected


def test_the_first_selection_waits_for_all_to_come_back_but_not_for_ever():
    after = again(played(LongestAbsent(k=2, gather=1.0)))
    assert invited(play(after, *(Ready(worker, 3, 0.0) for worker in WORKERS[:3]))) == []
    assert after.wake_at == 30.0
    assert invited(play(after, Tick(29.0))) == []
    assert len(invited(play(after, Tick(30.0)))) == 2
    short = again(played(LongestAbsent(k=2), deadline=8.0))
    play(short, Ready("w00", 3, 0.0))
    assert short.wake_at == 4.0, "at most half of the deadline"


def test_a_worker_that_is_known_to_be_absent_is_not_waited_for():
    after = again(played(LongestAbsent(k=2)))
    play(after, *(Ready(worker, 3, 0.0) for worker in WORKERS[:3]))
    assert len(invited(play(after, Absent("w03", 1.0)))) == 2


def test_a_round_after_the_first_gathers_as_ever():
    after = again(played(LongestAbsent(k=2)))
    answer(after, *WORKERS)
    play(after, *(Ready(worker, 4, 1.0) for worker in WORKERS))
    effects = play(after, Committed(3, 1.0))
    assert Open(4) in effects
    assert len(invited(effects)) == 2


def test_a_vector_of_an_earlier_round_is_kept_where_it_counts_later():
    before = machine(BufferSelection(3, 2))
    answer(before, "w00", "w01")
    after = again(before)
    assert after.state.held == before.state.held
    assert after.state.took.keys() == {"w00", "w01"}
    assert any(isinstance(effect, Close) for effect in answer(after, "w02"))
    fresh = machine(Everyone())
    answer(fresh, "w00")
    assert again(fresh).state.held == {}


def test_a_round_that_was_being_aggregated_is_open_again():
    before = machine(BufferSelection(2, 2))
    answer(before, "w00", "w01")
    assert before.state.phase is Phase.CLOSED
    after = again(before)
    assert (after.state.phase, after.state.closed) == (Phase.OPEN, None)
    (end,) = (effect for effect in play(after, Ready("w02", 0, 5.0)) if isinstance(effect, Close))
    assert end.workers == ("w00", "w01")


def test_a_fault_is_proven_for_good():
    before = played(Everyone())
    play(before, Fault("w03", 3, "not finite", 40.0))
    assert again(before).state.faults == {"w03": "not finite"}


def test_a_run_that_was_stopped_goes_on_and_one_that_is_done_does_not():
    before = played(Everyone())
    play(before, Stop("stopped on request", 40.0))
    after = again(before)
    assert (after.state.phase, after.state.reason) == (Phase.OPEN, "")
    done = again(played(Everyone(), rounds=3))
    assert done.state.phase is Phase.OPEN
    done = played(Everyone(), rounds=3)
    done.policy = RunPolicy(WORKERS, 3, 1, DEADLINE, "wait", 1, selection=Everyone())
    assert again(done).state.phase is Phase.FINISHED


def test_the_end_of_a_run_that_was_resumed_is_that_of_all_its_rounds():
    after = again(played(Everyone(), rounds=3))
    after.policy = RunPolicy(WORKERS, 4, 1, DEADLINE, "wait", 1, selection=Everyone())
    answer(after, *WORKERS)
    assert Finish("all 4 rounds are done") in play(after, Committed(3, 1.0))

"""The machine without invitations: rules of the protocol that no story tells (`test_stories.py`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from tests.server.protocol.kit import WORKERS, A, B, play, refusal

from varangian.protos.refusals import Refusal
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.events import (
    Absent,
    Accept,
    Close,
    Committed,
    Decline,
    Duplicate,
    Effect,
    Fault,
    Finish,
    Left,
    Offer,
    Push,
    Ready,
    RollCall,
    Skip,
    Skipped,
    Stop,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase, RunPolicy, RunState

POLICY = RunPolicy(WORKERS, rounds=3, quorum=3, deadline=10.0, shortfall="wait", f=1, selection=Everyone())


def machine(**changes: object) -> Machine:
    return Machine(replace(POLICY, **changes))


def send(machine: Machine, *workers: str, digest: bytes = A, at: float = 0.0) -> list[Effect]:
    """Whole uploads of the current round, one after the other."""
    round = machine.state.round
    return [
        effect
        for worker in workers
        for effect in play(machine, Offer(worker, round, digest, at), Push(worker, round, digest, at))
    ]


def the(kind: type[RollCall], effects: list[Effect]) -> RollCall:
    (found,) = (effect for effect in effects if isinstance(effect, kind))
    return found


def the_rest(effects: list[Effect]) -> list[Effect]:
    """What follows besides the answers to those who push."""
    return [effect for effect in effects if not isinstance(effect, Accept)]


# Closing


def test_the_clock_of_the_first_round_starts_with_the_first_worker():
    m = machine(shortfall="fail")
    assert m.wake_at is None
    assert play(m, Tick(1e6)) == []
    play(m, Offer("w00", 0, A, 1e6))
    assert m.wake_at == 1e6 + 10


def test_a_worker_that_only_proves_faulty_has_shown_up_too():
    m = machine()
    play(m, Fault("w00", 0, "wrong layout", 5.0))
    assert m.wake_at == 15.0


def test_a_push_at_the_deadline_closes_the_round_even_before_the_tick():
    m = machine()
    send(m, "w00", "w01")
    play(m, Offer("w02", 0, A, 9.0))
    assert the(Close, play(m, Push("w02", 0, A, 10.0))).workers == ("w00", "w01", "w02")


def test_names_are_sorted_whatever_the_order_of_arrival():
    m = machine(f=2, workers=tuple(reversed(WORKERS)))
    send(m, "w03", "w01")
    effects = play(m, Fault("w02", 0, "x", 1.0), Fault("w00", 0, "y", 1.0))
    close = the(Close, effects)
    assert close.workers == ("w01", "w03")
    assert list(close.faults) == ["w00", "w02"]


# Faults


def test_a_missing_worker_never_counts():
    m = machine(quorum=4)
    send(m, "w00", "w01", "w02")
    assert play(m, Tick(10.0)) == []
    assert m.state.overdue


def test_the_first_complete_vector_counts_and_another_one_changes_nothing():
    m = machine(f=0, shortfall="fail")
    send(m, "w00", digest=A)
    assert refusal(m, Offer("w00", 0, B, 1.0)) is Refusal.COUNTED
    assert refusal(m, Decline("w00", 0, "no memory left", 1.0)) is Refusal.COUNTED
    close = the(Close, send(m, "w01", "w02", "w03"))
    assert (close.workers, close.faults) == (WORKERS, {})


# Declined, absent


def test_who_has_declined_may_still_push():
    m = machine()
    play(m, Decline("w03", 0, "no memory left", 0.0))
    close = the(Close, send(m, *reversed(WORKERS)))
    assert (close.workers, close.declined) == (WORKERS, {})


def test_a_round_given_up_early_calls_nobody_missing_who_is_there():
    m = machine()
    play(m, Absent("w03", 0.0))
    skip = the(Skip, play(m, Fault("w00", 0, "x", 1.0), Fault("w01", 0, "y", 1.0)))
    assert skip.missing == ("w03",)


# The condition of the rule


@pytest.mark.parametrize("shortfall", ["wait", "skip", "fail"])
def test_a_round_that_the_rule_has_a_word_against_is_never_closed(shortfall: str):
    def three(pushed: Collection[str], faulty: Collection[str]) -> str | None:
        return None if len(pushed) + len(faulty) >= 3 else "it needs three"

    m = machine(quorum=1, shortfall=shortfall, requires=three)
    send(m, "w00", "w01")
    effects = play(m, Tick(10.0))
    if shortfall == "wait":
        assert effects == []
        assert the(Close, play(m, Fault("w02", 0, "x", 11.0))).workers == ("w00", "w01")
    else:
        assert the(Skip, effects).because.endswith(
            "the rule promises nothing for these rows: it needs three"
        )


def test_a_fault_withdraws_a_push_that_was_counted():
    m = machine()
    send(m, "w00", "w01", "w02")
    play(m, Fault("w00", 0, "x", 0.0))
    assert the(Close, send(m, "w03")).workers == ("w01", "w02", "w03")


# Shortfall


def test_an_update_in_between_starts_the_count_of_skips_again():
    m = machine(shortfall="skip", rounds=100, max_skips=2)
    send(m, "w00")
    play(m, Tick(10.0))
    send(m, *WORKERS, at=11.0)
    play(m, Committed(1, 12.0), Tick(22.0))
    assert m.state.phase is Phase.OPEN
    play(m, Tick(32.0))
    assert m.state.phase is Phase.FINISHED


def test_a_skipped_closed_round_fails_the_run_if_that_is_the_policy():
    m = machine(shortfall="fail")
    send(m, *WORKERS)
    assert play(m, Skipped(0, "no guarantee", 7.0))[-1] == Finish("no guarantee")


# The end


# Refusals


def test_other_rounds_are_refused():
    m = machine()
    assert refusal(m, Offer("w00", 1, A, 0.0)) is Refusal.FUTURE
    send(m, *WORKERS)
    play(m, Committed(0, 1.0))
    assert refusal(m, Offer("w00", 0, A, 1.0)) is Refusal.STALE
    assert refusal(m, Fault("w00", 0, "x", 1.0)) is Refusal.STALE


def test_a_round_that_is_being_aggregated_is_over():
    m = machine()
    send(m, "w00", "w01", "w02")
    play(m, Offer("w03", 0, A, 0.0), Tick(10.0))
    assert refusal(m, Push("w03", 0, A, 11.0)) is Refusal.STALE
    assert refusal(m, Fault("w03", 0, "x", 11.0)) is Refusal.STALE
    assert refusal(m, Offer("w03", 0, B, 11.0)) is Refusal.STALE
    assert refusal(m, Offer("w00", 0, B, 11.0)) is Refusal.COUNTED
    assert play(m, Offer("w00", 0, A, 11.0)) == [Duplicate("w00", 0)]


def test_a_vector_stands_until_its_round_is_over():
    m = machine()
    assert (m.refusal("w00", 0), m.refusal("w00", 1)) == (None, Refusal.FUTURE)
    play(m, Fault("w00", 0, "x", 0.0))
    send(m, "w01", "w02", "w03")
    assert (m.refusal("w00", 0), m.refusal("w01", 0)) == (Refusal.STALE, Refusal.STALE)
    play(m, Committed(0, 1.0), Fault("w01", 1, "x", 1.0))
    assert (m.refusal("w00", 1), m.refusal("w01", 1)) == (None, Refusal.FAULTY)
    play(m, Stop("stopped on request", 1.0))
    assert m.refusal("w00", 1) is Refusal.FINISHED


def test_everybody_may_pull_at_any_time():
    m = machine()
    before = m.state
    assert play(m, Ready("w00", 0, 0.0), Left("w00", 0.0)) == []
    assert (m.state, m.by_invitation) == (replace(before, at=0.0), False)


def test_a_sentence_stays_short_with_many_workers():
    many = tuple(f"w{i:03}" for i in range(200))
    m = machine(workers=many, quorum=150)
    send(m, "w000")
    assert ", missing w001, w002, w003, w004, w005 and 194 more; " in m.decision(20.0).because


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workers": ()}, "`workers` should be different names, at least one."),
        ({"workers": ("w00", "w00")}, "`workers` should be different names, at least one."),
        ({"quorum": 0}, "`quorum` should be between 1 and n = 4. Found 0."),
        ({"quorum": 5}, "`quorum` should be between 1 and n = 4. Found 5."),
        ({"f": 4}, "`f` should be between 0 and n - 1 = 3. Found 4."),
        ({"f": -1}, "`f` should be a non-negative integer. Found -1."),
        ({"rounds": 0}, "`rounds` and `max_skips` should be at least 1. Found 0 and 10."),
        ({"max_skips": 0}, "`rounds` and `max_skips` should be at least 1. Found 3 and 0."),
        ({"deadline": 0.0}, "`deadline` should be a positive number of seconds. Found 0.0."),
        ({"deadline": float("nan")}, "`deadline` should be a positive number of seconds. Found nan."),
    ],
)
def test_an_impossible_policy_is_refused(changes: dict[str, object], sentence: str):
    with pytest.raises(ValueError, match="should be") as error:
        machine(**changes)
    assert str(error.value).startswith(sentence)


def test_a_state_is_replaced_as_a_dataclass_is():
    state = RunState(round=3, absent=frozenset({"w00"}))
    assert state.replace(round=4, skips=1) == replace(state, round=4, skips=1)
    assert state == RunState(round=3, absent=frozenset({"w00"}))
    with pytest.raises(TypeError, match="rounds"):
        state.replace(rounds=4)

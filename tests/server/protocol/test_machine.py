"""The machine without invitations: each rule of the protocol by itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

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
    Event,
    Fault,
    Finish,
    Gone,
    Left,
    Offer,
    Open,
    Present,
    Push,
    Ready,
    Reject,
    RollCall,
    Skip,
    Skipped,
    Stop,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.quorum import Verdict
from varangian.server.protocol.state import Phase, RunPolicy

A, B = b"a" * 16, b"b" * 16
WORKERS = ("w00", "w01", "w02", "w03")
POLICY = RunPolicy(WORKERS, rounds=3, quorum=3, deadline=10.0, shortfall="wait", f=1, selection=Everyone())


def machine(**changes: object) -> Machine:
    return Machine(replace(POLICY, **changes))


def play(machine: Machine, *events: Event) -> list[Effect]:
    return [effect for event in events for effect in machine.handle(event)]


def send(machine: Machine, *workers: str, digest: bytes = A, at: float = 0.0) -> list[Effect]:
    """Whole uploads of the current round, one after the other."""
    round = machine.state.round
    return [
        effect
        for worker in workers
        for effect in play(machine, Offer(worker, round, digest, at), Push(worker, round, digest, at))
    ]


def refusal(machine: Machine, event: Event) -> Refusal:
    """The refusal of an event that must change nothing."""
    before = machine.state
    (effect,) = machine.handle(event)
    assert machine.state == before
    assert isinstance(effect, Reject)
    assert effect.round == before.round
    return effect.refusal


def the(kind: type[RollCall], effects: list[Effect]) -> RollCall:
    (found,) = (effect for effect in effects if isinstance(effect, kind))
    return found


def the_rest(effects: list[Effect]) -> list[Effect]:
    """What follows besides the answers to those who push."""
    return [effect for effect in effects if not isinstance(effect, Accept)]


# Closing


def test_a_round_closes_when_everyone_has_pushed():
    m = machine()
    effects = send(m, "w02", "w00", "w03", "w01", at=2.0)
    closed = Close(
        0, WORKERS, {}, (), 0.0, "round 0: 4 of 4 workers answered (4 pushed, 0 faulty); nobody is missing"
    )
    assert effects[-1] == closed
    assert effects[:-1] == [Accept(w, 0) for w in ("w02", "w02", "w00", "w00", "w03", "w03", "w01", "w01")]
    assert m.state.phase is Phase.CLOSED


def test_the_deadline_closes_a_round_whose_quorum_is_met():
    m = machine()
    send(m, "w00", "w01", at=1.0)
    send(m, "w02", at=2.0)
    assert m.wake_at == 11.0
    assert play(m, Tick(10.9)) == []
    close = the(Close, play(m, Tick(11.0)))
    assert (close.workers, close.missing, close.waited) == (("w00", "w01", "w02"), ("w03",), 10.0)


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


def test_time_does_nothing_to_a_round_that_is_being_aggregated():
    m = machine()
    send(m, "w00", "w01", "w02")
    play(m, Tick(10.0))
    before = m.state
    assert play(m, Tick(99.0)) == []
    assert m.state == replace(before, at=99.0)


def test_the_clock_of_a_later_round_starts_when_it_opens():
    m = machine()
    send(m, *WORKERS)
    assert m.wake_at is None
    assert play(m, Committed(0, 33.0)) == [Open(1)]
    assert m.wake_at == 43.0


def test_an_open_upload_does_not_hold_a_round_past_its_deadline():
    m = machine()
    send(m, "w00", "w01", "w02")
    play(m, Offer("w03", 0, A, 9.99))
    assert the(Close, play(m, Tick(10.0))).missing == ("w03",)


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


def test_a_fault_counts_for_the_quorum_and_not_as_a_push():
    m = machine()
    send(m, "w00", "w01")
    play(m, Fault("w03", 0, "not finite", 1.0))
    close = the(Close, play(m, Tick(10.0)))
    assert close.workers == ("w00", "w01")
    assert close.faults == {"w03": "not finite"}
    assert close.missing == ("w02",)


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


def test_a_worker_that_declines_is_not_waited_for_and_spends_nothing():
    m = machine(f=0)
    send(m, "w00", "w01", "w02", at=1.0)
    close = the(Close, play(m, Decline("w03", 0, "no memory left", 2.0)))
    assert (close.workers, close.missing, close.faults) == (("w00", "w01", "w02"), (), {})
    assert (close.declined, close.waited) == ({"w03": "no memory left"}, 1.0)
    play(m, Committed(0, 3.0))
    assert m.state.declined == {}


def test_who_has_declined_may_still_push():
    m = machine()
    play(m, Decline("w03", 0, "no memory left", 0.0))
    close = the(Close, send(m, *reversed(WORKERS)))
    assert (close.workers, close.declined) == (WORKERS, {})


@pytest.mark.parametrize("shortfall", ["wait", "skip"])
def test_a_round_that_too_many_decline_is_skipped_at_once(shortfall: str):
    m = machine(shortfall=shortfall)
    send(m, "w00", "w01")
    play(m, Decline("w03", 0, "x", 1.0))
    skip, opened = play(m, Decline("w02", 0, "y", 1.0))
    assert isinstance(skip, Skip)
    assert (skip.missing, skip.declined, opened) == ((), {"w02": "y", "w03": "x"}, Open(1))
    assert "2 declined (w02: y); nobody else can answer and the quorum of 3 is not met" in skip.because


def test_an_absent_worker_costs_no_deadline_until_it_is_back():
    m = machine()
    send(m, "w00", "w01", "w02", at=1.0)
    close = the(Close, play(m, Absent("w03", 2.0)))
    assert (close.missing, close.waited) == (("w03",), 1.0)
    play(m, Committed(0, 2.0))
    assert the(Close, send(m, "w00", "w01", "w02", at=3.0)).missing == ("w03",)
    play(m, Committed(1, 3.0), Present("w03", 3.0))
    assert the_rest(send(m, "w00", "w01", "w02", at=4.0)) == []
    assert the(Close, send(m, "w03", at=5.0)).workers == WORKERS


def test_below_the_quorum_absent_workers_are_waited_for():
    m = machine()
    play(m, Absent("w02", 0.0), Absent("w03", 0.0))
    assert the_rest(send(m, "w00", "w01", at=1.0)) == []
    assert play(m, Tick(11.0)) == []
    assert m.state.overdue
    assert the(Close, send(m, "w03", at=99.0)).missing == ("w02",)


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


def test_a_faulty_worker_is_out_for_the_round_and_back_in_the_next():
    m = machine()
    play(m, Fault("w00", 0, "x", 0.0))
    assert refusal(m, Offer("w00", 0, A, 1.0)) is Refusal.FAULTY
    assert refusal(m, Fault("w00", 0, "x again", 1.0)) is Refusal.FAULTY
    send(m, "w01", "w02", "w03")
    play(m, Committed(0, 2.0))
    assert the(Close, send(m, *WORKERS)).faults == {}


@pytest.mark.parametrize("shortfall", ["wait", "skip"])
def test_more_faults_than_f_skip_the_round_since_waiting_cannot_help(shortfall: str):
    m = machine(shortfall=shortfall)
    send(m, "w00")
    effects = play(m, Fault("w01", 0, "x", 1.0), Fault("w02", 0, "y", 2.0))
    assert effects == [
        Skip(
            0,
            ("w00",),
            {"w01": "x", "w02": "y"},
            (),
            2.0,
            "round 0: 2 proven faulty (w01, w02), more than the declared f = 1",
        ),
        Open(1),
    ]


# Shortfall


def test_wait_stays_open_until_the_quorum_is_met():
    m = machine()
    send(m, "w00", "w01")
    assert play(m, Tick(10.0)) == []
    assert m.wake_at is None
    assert m.decision(12.0) == (
        Verdict.SHORT,
        "round 0: 2 of 4 workers answered (2 pushed, 0 faulty), missing w02, w03; "
        "the deadline of 10 s is over and the quorum of 3 is not met",
    )
    close = the(Close, send(m, "w03", at=500.0))
    assert (close.workers, close.missing, close.waited) == (("w00", "w01", "w03"), ("w02",), 500.0)


def test_skip_opens_the_next_round_without_an_update():
    m = machine(shortfall="skip")
    send(m, "w00", "w01")
    skip, following = play(m, Tick(10.0))
    assert isinstance(skip, Skip)
    assert (skip.workers, skip.missing) == (("w00", "w01"), ("w02", "w03"))
    assert skip.because.endswith("the deadline of 10 s is over and the quorum of 3 is not met")
    assert following == Open(1)
    assert m.wake_at == 20.0


def test_fail_ends_the_run_with_the_sentence():
    m = machine(shortfall="fail")
    send(m, "w00")
    skip, finish = play(m, Tick(10.0))
    assert isinstance(skip, Skip)
    assert finish == Finish(skip.because)
    assert refusal(m, Offer("w01", 0, A, 11.0)) is Refusal.FINISHED


def test_so_many_skips_in_a_row_end_the_run():
    m = machine(shortfall="skip", rounds=100, max_skips=3)
    play(m, Offer("w00", 0, A, 0.0))
    effects = play(m, Tick(10.0), Tick(20.0), Tick(30.0))
    assert isinstance(effects[-1], Finish)
    assert effects[-1].reason.startswith("3 rounds in a row had no update; the last, round 2: 0 of 4")
    assert m.state.phase is Phase.FINISHED


def test_an_update_in_between_starts_the_count_of_skips_again():
    m = machine(shortfall="skip", rounds=100, max_skips=2)
    send(m, "w00")
    play(m, Tick(10.0))
    send(m, *WORKERS, at=11.0)
    play(m, Committed(1, 12.0), Tick(22.0))
    assert m.state.phase is Phase.OPEN
    play(m, Tick(32.0))
    assert m.state.phase is Phase.FINISHED


def test_a_closed_round_can_be_skipped():
    m = machine()
    send(m, *WORKERS, at=3.0)
    skip, following = play(m, Skipped(0, "no guarantee", 7.0))
    assert skip == Skip(0, WORKERS, {}, (), 0.0, "no guarantee")
    assert following == Open(1)


def test_a_skipped_closed_round_fails_the_run_if_that_is_the_policy():
    m = machine(shortfall="fail")
    send(m, *WORKERS)
    assert play(m, Skipped(0, "no guarantee", 7.0))[-1] == Finish("no guarantee")


# The end


def test_the_run_ends_after_its_rounds():
    m = machine(rounds=2)
    for round in range(2):
        send(m, *WORKERS)
        effects = play(m, Committed(round, 1.0))
    assert effects == [Finish("all 2 rounds are done")]
    assert m.wake_at is None


def test_a_stop_ends_the_run_at_once():
    m = machine()
    assert play(m, Stop("stopped on request", 1.0)) == [Finish("stopped on request")]
    assert refusal(m, Stop("again", 2.0)) is Refusal.FINISHED
    assert refusal(m, Offer("w00", 0, A, 2.0)) is Refusal.FINISHED
    assert play(m, Tick(100.0)) == []


# Refusals


def test_strangers_are_refused():
    assert refusal(machine(), Offer("w99", 0, A, 0.0)) is Refusal.UNKNOWN_WORKER
    assert refusal(machine(), Fault("w99", 0, "x", 0.0)) is Refusal.UNKNOWN_WORKER


def test_other_rounds_are_refused():
    m = machine()
    assert refusal(m, Offer("w00", 1, A, 0.0)) is Refusal.FUTURE
    send(m, *WORKERS)
    play(m, Committed(0, 1.0))
    assert refusal(m, Offer("w00", 0, A, 1.0)) is Refusal.STALE
    assert refusal(m, Fault("w00", 0, "x", 1.0)) is Refusal.STALE


def test_the_digest_of_another_round_makes_no_duplicate():
    m = machine()
    send(m, *WORKERS)
    play(m, Committed(0, 1.0))
    send(m, "w00")
    assert refusal(m, Offer("w00", 0, A, 1.0)) is Refusal.STALE


def test_a_round_that_is_being_aggregated_is_over():
    m = machine()
    send(m, "w00", "w01", "w02")
    play(m, Offer("w03", 0, A, 0.0), Tick(10.0))
    assert refusal(m, Push("w03", 0, A, 11.0)) is Refusal.STALE
    assert refusal(m, Fault("w03", 0, "x", 11.0)) is Refusal.STALE
    assert refusal(m, Offer("w03", 0, B, 11.0)) is Refusal.STALE
    assert refusal(m, Offer("w00", 0, B, 11.0)) is Refusal.COUNTED
    assert play(m, Offer("w00", 0, A, 11.0)) == [Duplicate("w00", 0)]


def test_a_duplicate_is_counted_once():
    m = machine()
    send(m, "w00")
    before = m.state
    assert play(m, Offer("w00", 0, A, 1.0)) == [Duplicate("w00", 0)]
    assert m.state == before


def test_one_upload_at_a_time():
    m = machine()
    play(m, Offer("w00", 0, A, 0.0))
    assert refusal(m, Offer("w00", 0, A, 1.0)) is Refusal.BUSY
    assert refusal(m, Offer("w00", 0, B, 1.0)) is Refusal.BUSY
    play(m, Gone("w00", 0, 2.0))
    assert play(m, Offer("w00", 0, B, 3.0)) == [Accept("w00", 0)]


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


def test_an_upload_that_outlives_its_round_keeps_its_worker_busy():
    m = machine()
    send(m, "w00", "w01", "w02")
    play(m, Offer("w03", 0, A, 0.0), Tick(10.0), Committed(0, 11.0))
    assert refusal(m, Offer("w03", 1, B, 12.0)) is Refusal.BUSY
    assert refusal(m, Gone("w03", 1, 12.0)) is Refusal.UNOFFERED
    assert play(m, Gone("w03", 0, 12.0)) == []
    assert play(m, Offer("w03", 1, B, 12.0)) == [Accept("w03", 1)]


@pytest.mark.parametrize("digest", [A, B])
def test_a_push_must_be_what_was_offered(digest: bytes):
    m = machine()
    if digest == B:
        play(m, Offer("w00", 0, A, 0.0))
    assert refusal(m, Push("w00", 0, digest, 1.0)) is Refusal.UNOFFERED


def test_only_an_upload_that_is_open_can_be_gone():
    m = machine()
    assert refusal(m, Gone("w00", 0, 0.0)) is Refusal.UNOFFERED
    send(m, "w00")
    assert refusal(m, Gone("w00", 0, 0.0)) is Refusal.UNOFFERED


def test_only_a_closed_round_can_be_committed_or_skipped():
    m = machine()
    assert refusal(m, Committed(0, 0.0)) is Refusal.NOT_CLOSED
    assert refusal(m, Skipped(0, "x", 0.0)) is Refusal.NOT_CLOSED
    send(m, *WORKERS)
    assert refusal(m, Committed(1, 0.0)) is Refusal.FUTURE
    play(m, Committed(0, 0.0))
    assert refusal(m, Committed(0, 0.0)) is Refusal.STALE


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

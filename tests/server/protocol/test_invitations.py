"""The machine by invitation: who gets a model and may push for it, selection by selection."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples
from tests.server.protocol.kit import WORKERS, A, B, play, refusal

from varangian.aggregators.graphs import (
    Chord,
    Complete,
    Exponential,
    Graph,
    Halton,
    OnePeer,
    RandomRegular,
    Ring,
)
from varangian.protos.refusals import Refusal
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent, longest_absent
from varangian.server.protocol.events import (
    Absent,
    Accept,
    Close,
    Committed,
    Decline,
    Duplicate,
    Effect,
    Fault,
    Gone,
    Invite,
    Left,
    Offer,
    Open,
    Push,
    Ready,
    Settled,
    Skip,
    Skipped,
    Tick,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.quorum import Verdict
from varangian.server.protocol.state import Condition, RunPolicy, Selection


def policy(choice: Selection, **fields: object) -> RunPolicy:
    usual = {"workers": WORKERS, "rounds": 100, "quorum": 1, "deadline": 10.0, "shortfall": "wait", "f": 1}
    return RunPolicy(**usual | fields, selection=choice)


def machine(choice: Selection, **fields: object) -> Machine:
    return Machine(policy(choice, **fields))


def ready(machine: Machine, *workers: str, at: float = 0.0) -> list[str]:
    """Who is invited when these ask, one after the other, for the open round."""
    return invited(play(machine, *(Ready(worker, machine.state.round, at) for worker in workers)))


def invited(effects: list[Effect]) -> list[str]:
    return [effect.worker for effect in effects if isinstance(effect, Invite)]


def push(machine: Machine, *workers: str, round: int | None = None) -> list[Effect]:
    """Whole uploads; what follows them, without the answers to those who push."""
    round = machine.state.round if round is None else round
    at, effects = machine.state.at, list[Effect]()
    for worker in workers:
        answer = Accept(worker, round)
        offered = play(machine, Offer(worker, round, A, at))
        pushed = play(machine, Push(worker, round, A, at))
        assert (offered, pushed[0]) == ([answer], answer)
        effects += pushed[1:]
    return effects


def the(kind: type[Close] | type[Skip], effects: list[Effect]) -> Close | Skip:
    (found,) = (effect for effect in effects if isinstance(effect, Close | Skip))
    assert isinstance(found, kind)
    return found


# A round


def test_who_asks_again_because_the_answer_was_lost_gets_the_same_answer():
    m = machine(LongestAbsent(k=1))
    assert ready(m, "w00", "w01") == ["w00"]
    before = m.state
    assert play(m, Ready("w00", 0, 0.0)) == [Invite("w00", 0)]
    assert m.state == before


def test_who_has_answered_waits_for_the_next_round():
    m = machine(BufferSelection(4, 0))
    ready(m, "w00", "w01")
    push(m, "w00")
    assert play(m, Ready("w00", 1, 0.0)) == []
    assert m.wake_at == 10.0
    assert the(Close, play(m, Tick(10.0))).missing == ("w01",)  # of the others nobody has asked
    assert play(m, Committed(0, 11.0)) == [Open(1), Invite("w00", 1)]


# Vectors


def test_a_push_without_an_invitation_is_refused():
    m = machine(LongestAbsent(k=1))
    assert ready(m, "w00", "w01") == ["w00"]
    for event in (Offer("w01", 0, A, 0.0), Fault("w01", 0, "x", 0.0)):
        assert refusal(m, event) is Refusal.NOT_INVITED
    for event in (Push("w01", 0, A, 0.0), Push("w00", 0, A, 0.0), Gone("w00", 0, 0.0)):
        assert refusal(m, event) is Refusal.UNOFFERED
    assert refusal(m, Offer("w00", 1, A, 0.0)) is Refusal.FUTURE
    for event in (Offer("mallory", 0, A, 0.0), Ready("mallory", 0, 0.0), Fault("mallory", 0, "x", 0.0)):
        assert refusal(m, event) is Refusal.UNKNOWN_WORKER
    assert [m.refusal(w, 0) for w in ("w00", "w01")] == [None, Refusal.NOT_INVITED]
    assert play(m, Offer("w00", 0, A, 0.0)) == [Accept("w00", 0)]


def test_columns_as_they_come_are_not_for_vectors_of_several_rounds():
    m = machine(BufferSelection(4, 0))
    ready(m, *WORKERS)
    play(m, Offer("w00", 0, A, 0.0))
    assert refusal(m, Settled(0, {"w00": A}, 0.0)) is Refusal.UNOFFERED


def test_a_retry_counts_once_while_it_waits_while_it_is_read_and_after_it_was_used():
    m = machine(LongestAbsent(k=2))
    ready(m, *WORKERS)

    def retried() -> None:
        assert play(m, Offer("w00", 0, A, 0.0)) == [Duplicate("w00", 0)]
        assert refusal(m, Offer("w00", 0, b"", 0.0)) is Refusal.REPEATED

    push(m, "w00")
    retried()
    the(Close, push(m, "w01"))
    retried()
    play(m, Ready("w00", 1, 1.0), Committed(0, 1.0))
    retried()
    assert refusal(m, Offer("w00", 0, B, 1.0)) is Refusal.COUNTED


def test_a_retry_hears_the_same_when_the_round_of_its_vector_came_to_nothing():
    """Who sends deltas would send what was taken of this one once more."""
    m = machine(LongestAbsent(k=2), quorum=2, shortfall="skip")
    ready(m, "w00", "w01")
    push(m, "w00")
    the(Skip, play(m, Tick(10.0)))
    assert m.state.held == {}
    assert play(m, Offer("w00", 0, A, 10.0)) == [Duplicate("w00", 0)]
    assert refusal(m, Offer("w00", 0, B, 10.0)) is Refusal.COUNTED
    assert refusal(m, Offer("w01", 0, A, 10.0)) is Refusal.TOO_OLD


def test_a_faulty_worker_is_out_for_the_round_and_back_in_the_next():
    m = machine(BufferSelection(4, 0))
    ready(m, *WORKERS)
    play(m, Fault("w00", 0, "x", 0.0))
    assert refusal(m, Offer("w00", 0, A, 0.0)) is Refusal.FAULTY
    assert m.refusal("w00", 0) is Refusal.FAULTY
    assert ready(m, "w00") == []  # out until the next round
    assert the(Close, push(m, "w01", "w02", "w03")).workers == WORKERS[1:]
    assert play(m, Committed(0, 1.0)) == [Open(1), Invite("w00", 1)]


# Declined, absent


def test_who_declines_is_not_waited_for_and_asks_for_the_next_round():
    m = machine(BufferSelection(4, 0), quorum=3)
    ready(m, *WORKERS)
    push(m, "w00", "w01", "w02")
    close = the(Close, play(m, Decline("w03", 0, "no memory left", 1.0)))
    assert (close.missing, close.faults, close.declined) == ((), {}, {"w03": "no memory left"})
    assert play(m, Ready("w03", 1, 1.0), Committed(0, 1.0)) == [Open(1), Invite("w03", 1)]


def test_a_round_that_too_many_decline_is_skipped_at_once():
    m = machine(LongestAbsent(k=2), quorum=2, fixed=True, workers=WORKERS[:2])
    ready(m, "w00", "w01")
    push(m, "w00")
    skip = the(Skip, play(m, Decline("w01", 0, "x", 1.0)))
    assert (skip.workers, skip.missing, skip.declined) == (("w00",), (), {"w01": "x"})


def test_who_declines_while_others_are_aggregated_has_declined_the_next_round():
    m = machine(BufferSelection(size=2, tau=2))
    ready(m, *WORKERS)
    the(Close, push(m, "w00", "w01"))
    assert play(m, Decline("w02", 0, "x", 1.0), Committed(0, 1.0)) == [Open(1)]
    assert m.state.declined == {"w02": "x"}


@pytest.mark.parametrize("choice", [LongestAbsent(k=4), NeighbourhoodSelection(Complete())])
def test_an_absent_worker_costs_no_deadline_until_it_is_back(choice: Selection):
    m = machine(choice, quorum=3)
    ready(m, *WORKERS)
    push(m, "w00", "w01", "w02")
    the(Close, play(m, Absent("w03", 1.0)))
    play(m, Committed(0, 1.0))
    ready(m, "w00", "w01", "w02")
    the(Close, push(m, "w00", "w01", "w02"))
    play(m, Committed(1, 1.0))
    ready(m, *WORKERS)
    assert push(m, "w00", "w01", "w02") == []
    assert the(Close, push(m, "w03")).workers == WORKERS


# The condition of the rule


def at_least(least: int) -> Condition:
    return lambda pushed, faulty: f"it needs {least}" if len(pushed) + len(faulty) < least else None


def test_a_round_below_what_the_rule_asks_for_waits_for_workers_that_start_late():
    m = machine(
        LongestAbsent(k=4), quorum=3, requires=at_least(3), workers=tuple(f"w{i:02}" for i in range(6))
    )
    assert ready(m, "w00", "w01") == ["w00", "w01"]
    assert push(m, "w00", "w01") == []
    assert play(m, Tick(10.0)) == []  # and it still waits
    assert m.state.round == 0
    assert ready(m, "w04", at=30.0) == ["w04"]
    assert the(Close, push(m, "w04")).workers == ("w00", "w01", "w04")


@pytest.mark.parametrize(
    "choice",
    [LongestAbsent(k=4), BufferSelection(size=4, tau=9), NeighbourhoodSelection(Complete())],
    ids=repr,
)
@pytest.mark.parametrize("shortfall", ["wait", "skip", "fail"])
def test_no_participation_closes_a_round_that_the_rule_has_a_word_against(
    choice: Selection, shortfall: str
):
    m = machine(choice, quorum=1, shortfall=shortfall, requires=at_least(3))
    ready(m, *WORKERS)
    push(m, "w00", "w01")
    effects = play(m, Tick(10.0))
    if shortfall == "wait":
        assert effects == []
        assert len(the(Close, play(m, Fault("w02", 0, "x", 11.0))).workers) == 2
    else:
        assert the(Skip, effects).because.endswith("for these rows: it needs 3")


def test_a_quorum_that_was_asked_for_is_never_lowered():
    m = machine(LongestAbsent(k=4), quorum=3, fixed=True)
    ready(m, "w00", "w01")
    assert push(m, "w00", "w01") == []
    assert play(m, Tick(10.0)) == []
    assert m.state.overdue


def test_one_upload_at_a_time_also_when_it_outlives_its_round():
    m = machine(BufferSelection(4, 0), quorum=3)
    ready(m, *WORKERS)
    play(m, Offer("w03", 0, A, 0.0))
    assert refusal(m, Offer("w03", 0, A, 0.0)) is Refusal.BUSY
    push(m, "w00", "w01", "w02")
    assert the(Close, play(m, Tick(10.0))).missing == ("w03",)
    assert m.refusal("w03", 0) is Refusal.TOO_OLD
    assert play(m, Committed(0, 11.0)) == [Open(1)]
    assert ready(m, "w03") == ["w03"]
    assert refusal(m, Offer("w03", 1, A, 12.0)) is Refusal.BUSY
    assert refusal(m, Push("w03", 0, A, 12.0)) is Refusal.TOO_OLD
    assert play(m, Gone("w03", 0, 12.0)) == []
    assert play(m, Offer("w03", 1, A, 12.0)) == [Accept("w03", 1)]


def test_a_digest_may_come_at_the_end():
    m = machine(LongestAbsent(k=1))
    ready(m, "w00")
    assert play(m, Offer("w00", 0, b"", 0.0))[0] == Accept("w00", 0)
    assert play(m, Push("w00", 0, A, 0.0))[0] == Accept("w00", 0)
    assert play(m, Offer("w00", 0, A, 0.0)) == [Duplicate("w00", 0)]


def test_who_is_heard_of_before_its_dead_upload_ends_is_answered_then():
    m = machine(LongestAbsent(k=1))
    ready(m, "w00", "w01")
    play(m, Offer("w00", 0, A, 0.0))
    assert ready(m, "w00") == []
    assert play(m, Left("w01", 0.0), Gone("w00", 0, 1.0)) == [Invite("w00", 0)]
    assert m.state.parked == {}
    play(m, Offer("w00", 0, A, 2.0))
    assert ready(m, "w00") == []
    assert the(Close, play(m, Push("w00", 0, A, 2.0))).workers == ("w00",)  # it was not dead
    assert play(m, Committed(0, 3.0)) == [Open(1), Invite("w00", 1)]


def test_who_leaves_while_its_upload_is_open_keeps_its_place():
    m = machine(LongestAbsent(k=1))
    ready(m, "w00", "w01")
    play(m, Offer("w00", 0, A, 0.0))
    assert play(m, Left("w00", 0.0)) == []
    assert the(Close, play(m, Push("w00", 0, A, 0.0))).workers == ("w00",)


# Time


def test_at_the_deadline_a_quorum_is_enough():
    m = machine(BufferSelection(4, 0), quorum=2)
    assert m.wake_at is None
    ready(m, *WORKERS, at=5.0)
    push(m, "w01")
    assert m.wake_at == 15.0
    assert play(m, Tick(15.0)) == []  # one is not enough
    assert m.wake_at is None
    assert m.decision(15.0) == (
        Verdict.SHORT,
        "round 0: 1 of 4 answers are there (1 pushed, 0 faulty), missing w00, w02, w03; "
        "the deadline of 10 s is over and the quorum of 2 is not met",
    )
    close = the(Close, push(m, "w03"))
    assert (close.workers, close.missing) == (("w01", "w03"), ("w00", "w02"))
    assert close.because.endswith(
        "missing w00, w02; the deadline of 10 s is over and the quorum of 2 is met"
    )
    assert m.wake_at is None


def test_a_closed_round_that_came_to_nothing_has_used_its_vectors():
    m = machine(LongestAbsent(k=1))
    ready(m, "w00")
    close = the(Close, push(m, "w00"))
    ready(m, "w01")
    skip, opened, *invites = play(m, Ready("w00", 1, 1.0), Skipped(0, "no guarantee", 1.0))
    assert skip == Skip(
        0, close.workers, {}, (), close.waited, "no guarantee", quorum_after=close.quorum_after
    )
    assert [opened, *invites] == [Open(1), Invite("w01", 1)]
    assert play(m, Offer("w00", 0, A, 1.0)) == [Duplicate("w00", 0)]
    assert refusal(m, Skipped(1, "x", 1.0)) is Refusal.NOT_CLOSED
    assert refusal(m, Committed(0, 1.0)) is Refusal.STALE


# Away


def test_a_worker_that_wants_a_later_round_is_away_until_then():
    m = machine(LongestAbsent(k=2), workers=WORKERS[:2])
    assert play(m, Ready("w01", 2, 0.0), Ready("w00", 0, 0.0)) == [Invite("w00", 0)]
    for round in range(2):  # and nobody waits for it
        close = the(Close, push(m, "w00"))
        assert close.because == (
            f"round {round}: 1 of 1 answers are there (1 pushed, 0 faulty); nobody else is waited for"
        )
        effects = play(m, Ready("w00", round + 1, 0.0), Committed(round, 0.0))
    assert effects == [Open(2), Invite("w00", 2), Invite("w01", 2)]


def test_rounds_in_which_all_are_away_pass_at_once():
    m = machine(LongestAbsent(k=1), workers=WORKERS[:2])
    assert play(m, Ready("w00", 3, 0.0)) == []  # the other may come
    skips = play(m, Ready("w01", 2, 0.0))
    assert [type(effect) for effect in skips] == [Skip, Open, Skip, Open, Invite]
    assert skips[0].because == (
        "round 0: 0 of 1 answers are there (0 pushed, 0 faulty); the others (w00, w01) are away "
        "and the quorum of 1 is not met"
    )
    assert skips[-1] == Invite("w01", 2)


def test_a_run_whose_workers_are_all_away_for_too_long_ends():
    m = machine(LongestAbsent(k=1), workers=WORKERS[:2], max_skips=3)
    effects = play(m, Ready("w00", 9, 0.0), Ready("w01", 9, 0.0))
    assert effects[-1].reason.startswith("3 rounds in a row had no update")


def test_nobody_waits_longer_than_the_deadline_for_the_silent_while_others_wait_for_the_next_round():
    """With `wait`, too: w01 gave up what it was invited to, and the next round is one that it can do."""
    m = machine(BufferSelection(3, 0), quorum=2, workers=WORKERS[:3])
    ready(m, *WORKERS[:3])
    push(m, "w00")
    play(m, Ready("w00", 1, 0.0), Ready("w01", 1, 0.0))
    skip, *following = play(m, Tick(10.0))
    assert isinstance(skip, Skip)
    assert following == [Open(1), Invite("w00", 1), Invite("w01", 1)]
    assert m.state.overdue is False


# Oldest


def test_whoever_was_away_longest_is_chosen_and_ties_go_by_name():
    last = {"w00": 3, "w01": 1, "w03": 1}
    assert longest_absent(WORKERS, last, 1) == ("w02",)
    assert longest_absent(WORKERS, last, 3) == ("w01", "w02", "w03")
    assert longest_absent(("w00", "w03", "w01"), last, 1) == ("w01",)
    assert longest_absent((), last, 2) == ()
    assert longest_absent(WORKERS, {}, 2) == ("w00", "w01")


def test_a_seat_that_is_left_goes_to_the_next_but_one_that_is_kept_does_not():
    m = machine(LongestAbsent(k=2))
    assert ready(m, "w00", "w01", "w02", "w03") == ["w00", "w01"]
    assert play(m, Left("w00", 0.0)) == [Invite("w02", 0)]
    push(m, "w01")
    assert play(m, Left("w01", 0.0)) == []  # its vector stays
    assert the(Close, push(m, "w02")).workers == ("w01", "w02")


def test_a_seat_that_nobody_takes_is_not_waited_for():
    m = machine(LongestAbsent(k=3), quorum=3)
    assert ready(m, "w00", "w01") == ["w00", "w01"]
    push(m, "w00")
    close = the(Close, play(m, Left("w01", 0.0)))
    assert (close.workers, close.missing) == (("w00",), ())


def test_a_quorum_tolerates_as_many_silent_ones_whether_or_not_all_seats_are_taken():
    for there in (4, 3, 2):
        m = machine(LongestAbsent(k=4), quorum=3)
        ready(m, *WORKERS[:there])
        push(m, *WORKERS[2:there])
        assert play(m, Tick(10.0)) == []
        close = the(Close, push(m, "w00"))
        assert close.missing == ("w01",)
        assert close.because.endswith(f"and the quorum of {there - 1} is met")


def test_to_be_invited_is_to_participate():
    """Two workers that never answer do not keep the two seats for ever."""
    m = machine(LongestAbsent(k=2), shortfall="skip")
    chosen = [ready(m, *WORKERS)]
    for round in range(3):
        chosen.append(invited(play(m, Tick(10.0 * (round + 1)))))
        assert ready(m, *chosen[-2]) == []
    assert chosen == [["w00", "w01"], ["w02", "w03"], ["w00", "w01"], ["w02", "w03"]]


def test_after_the_deadline_others_may_answer_for_those_who_are_silent():
    m = machine(LongestAbsent(k=2), quorum=2)
    assert ready(m, "w00", "w01", "w02") == ["w00", "w01"]
    assert play(m, Tick(10.0)) == [Invite("w02", 0)]
    assert ready(m, "w03", at=11.0) == ["w03"]
    push(m, "w02")
    assert the(Close, push(m, "w03")).workers == ("w02", "w03")


def test_the_choice_waits_for_more_to_choose_from():
    m = machine(LongestAbsent(k=1, gather=3.0))
    assert ready(m, "w03", at=1.0) == []
    assert m.wake_at == 4.0
    assert ready(m, "w02", at=2.0) == []
    assert play(m, Tick(4.0)) == [Invite("w02", 0)]
    assert m.wake_at == 11.0
    the(Close, push(m, "w02"))
    assert play(m, Committed(0, 5.0)) == [Open(1)]  # again some time to come
    assert ready(m, "w00", "w01", at=6.0) == []
    assert play(m, Ready("w02", 2, 6.5)) == [Invite("w00", 1)]  # and now all are accounted for


def test_who_was_too_late_to_be_chosen_is_not_waited_for_until_it_asks_again():
    m = machine(LongestAbsent(k=1, gather=3.0), rounds=100)
    ready(m, "w00", "w01", "w02")
    assert play(m, Tick(3.0)) == [Invite("w00", 0)]
    for round in range(2):  # w03 is dead
        close = the(Close, push(m, f"w0{round}"))
        assert close.round == round
        play(m, Ready(f"w0{round}", round + 1, 4.0))
        assert play(m, Committed(round, 4.0)) == [Open(round + 1), Invite(f"w0{round + 1}", round + 1)]
    assert ready(m, "w03", at=5.0) == []  # it lives, and has to wait for the next round
    the(Close, push(m, "w02"))
    play(m, Left("w03", 5.0))
    assert play(m, Ready("w02", 3, 6.0), Committed(2, 6.0)) == [Open(3)]
    assert play(m, Ready("w03", 3, 6.5)) == [Invite("w03", 3)]


def test_who_declines_has_not_taken_part():
    """It was away when its turn came, and is the next when it is back."""
    m = machine(LongestAbsent(k=1), quorum=1)
    assert ready(m, "w00", "w01") == ["w00"]
    assert play(m, Ready("w00", 1, 0.0)) == [Invite("w01", 0)]
    the(Close, push(m, "w01"))
    assert play(m, Ready("w01", 1, 1.0), Committed(0, 1.0)) == [Open(1), Invite("w00", 1)]
    push(m, "w00")
    play(m, Ready("w00", 2, 1.0), Committed(1, 1.0))
    assert m.state.invited == {"w01": 2}
    assert play(m, Ready("w01", 4, 1.0)) == [Invite("w00", 2)]
    assert m.state.last == {"w00": 2, "w01": 0}


def test_who_was_too_slow_has_taken_part():
    """To ask for the next round when this one is closed gives no seat to anybody else."""
    m = machine(LongestAbsent(k=2))
    ready(m, "w00", "w01", "w02")
    push(m, "w00")
    the(Close, play(m, Tick(10.0)))
    assert play(m, Ready("w01", 1, 11.0), Ready("w00", 1, 11.0)) == []
    assert play(m, Committed(0, 12.0)) == [Open(1), Invite("w00", 1), Invite("w02", 1)]


def test_an_event_after_the_time_to_choose_does_what_the_tick_would_have_done():
    m = machine(LongestAbsent(k=1, gather=3.0))
    ready(m, "w01")
    assert play(m, Left("w03", 3.5)) == [Invite("w01", 0)]


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


def staleness_bound(n: int, k: int, every: int) -> int:
    """Lemma 1: rounds since the last participation, if each is there once in `every` rounds in a row."""
    return -(-n // k) * every - 1


@settings(deadline=None, max_examples=examples(80))
@given(availability(), st.randoms(use_true_random=False))
def test_lemma_1_no_participation_is_longer_ago_than_its_bound(
    case: tuple[int, int, int, list[list[int]]], order: object
):
    """Who is away says until when; in which order they ask makes no difference."""
    n, k, every, rounds = case
    workers = tuple(f"w{i:02}" for i in range(n))
    back = {worker: [t for t, here in enumerate(rounds) if i in here] for i, worker in enumerate(workers)}
    m = machine(LongestAbsent(k, gather=5.0), workers=workers, rounds=len(rounds) + 9, max_skips=99, f=0)
    last = dict.fromkeys(workers, -1)

    def asking(t: int) -> list[Effect]:
        order.shuffle(asked := [*workers])
        back_at = {w: next((r for r in back[w] if r >= t), 10**6) for w in asked}
        return play(m, *(Ready(worker, back_at[worker], 0.0) for worker in asked))

    effects = asking(0)
    for t in range(len(rounds)):
        chosen = longest_absent([worker for worker in workers if t in back[worker]], last, k)
        assert [e.worker for e in effects if isinstance(e, Invite) and e.round == t] == [*chosen]
        last |= dict.fromkeys(chosen, t)
        assert max(t - participation for participation in last.values()) <= staleness_bound(n, k, every)
        if chosen:  # a round in which all are away has passed by itself
            push(m, *chosen, round=t)
            effects = asking(t + 1) + play(m, Committed(t, 0.0))


def test_the_bound_of_lemma_1_is_reached():
    """Who is there only every third round, and last in the order, waits exactly as long as it says."""
    n, k, every = 5, 2, 3
    workers = [f"w{i:02}" for i in range(n)]
    last, worst = dict.fromkeys(workers, -1), 0
    for t in range(90):
        here = workers if t % every == every - 1 else []
        last |= dict.fromkeys(longest_absent(here, last, k), t)
        worst = max(worst, *(t - participation for participation in last.values()))
    assert worst == staleness_bound(n, k, every) == 8


# Buffered


def test_a_fault_while_others_are_aggregated_counts_in_the_next_round():
    m = machine(BufferSelection(size=2, tau=1), f=1)
    ready(m, *WORKERS)
    assert the(Close, push(m, "w00", "w01")).faults == {}
    play(m, Fault("w02", 0, "x", 0.0))
    assert m.state.faults == {}
    assert refusal(m, Offer("w02", 0, A, 0.0)) is Refusal.FAULTY
    play(m, Ready("w02", 1, 0.0), Committed(0, 1.0))
    assert m.state.faults == {"w02": "x"}
    assert the(Close, push(m, "w03", round=0)).faults == {"w02": "x"}
    assert play(m, Committed(1, 1.0)) == [Open(2), Invite("w02", 2)]


@pytest.mark.parametrize(("tau", "left"), [(0, [{}, {}]), (1, [{"w00": (0, A)}, {}])])
def test_a_round_that_is_skipped_leaves_only_what_is_young_enough(tau: int, left: list[object]):
    m = machine(BufferSelection(size=2, tau=tau), quorum=2, shortfall="skip")
    ready(m, *WORKERS)
    push(m, "w00")
    assert invited(play(m, Ready("w00", 1, 0.0), Tick(10.0))) == (["w00"] if tau == 0 else [])
    assert m.state.held == left[0]
    assert invited(play(m, Tick(20.0))) == (["w00"] if tau == 1 else [])
    assert m.state.held == left[1]


def test_who_asks_for_a_newer_model_gives_the_old_one_up():
    m = machine(BufferSelection(size=1, tau=5))
    ready(m, "w00", "w01")
    push(m, "w00")
    play(m, Committed(0, 1.0))
    assert ready(m, "w01") == ["w01"]
    assert refusal(m, Offer("w01", 0, A, 1.0)) is Refusal.NOT_INVITED


def test_a_buffer_that_does_not_fill_is_used_at_the_deadline():
    m = machine(BufferSelection(size=3, tau=1))
    ready(m, *WORKERS)
    push(m, "w01")
    play(m, Left("w00", 1.0), Left("w01", 1.0))
    close = the(Close, play(m, Tick(10.0)))
    assert (close.workers, close.missing) == (("w01",), ("w02", "w03"))


# Neighbourhoods


def test_a_round_whose_members_are_all_there_closes_as_soon_as_it_opens():
    m = machine(NeighbourhoodSelection(OnePeer()))
    assert [m.policy.selection.members(WORKERS, t) for t in (0, 1)] == [("w00", "w03"), ("w00", "w01")]
    ready(m, *WORKERS)
    push(m, "w01", "w03")
    the(Close, push(m, "w00"))
    assert play(m, Ready("w00", 1, 0.0), Committed(0, 1.0)) == [Open(1), Invite("w00", 1)]
    the(Close, push(m, "w00"))
    m = machine(NeighbourhoodSelection(OnePeer()), quorum=2, shortfall="skip")
    ready(m, *WORKERS)
    push(m, "w00", "w01")
    skip, opened, close = play(m, Tick(10.0))
    assert (skip.round, opened, close.round) == (0, Open(1), 1)
    assert close.ages == {"w00": 1, "w01": 1}


def test_the_quorum_is_all_of_a_neighbourhood_that_has_fewer():
    m = machine(NeighbourhoodSelection(Ring()), quorum=4)
    ready(m, *WORKERS)
    push(m, "w00", "w01")
    assert play(m, Tick(10.0)) == []
    assert the(Close, push(m, "w03")).round == 0


def test_a_neighbourhood_that_is_passed_over_keeps_its_vectors():
    m = machine(NeighbourhoodSelection(Ring()), quorum=3, shortfall="skip")
    ready(m, "w00", "w01", "w02")
    push(m, "w00", "w01")
    skip, opened = play(m, Tick(10.0))
    assert (skip.workers, skip.missing, opened) == (("w00", "w01"), ("w03",), Open(1))
    close = the(Close, push(m, "w02", round=0))
    assert (close.round, close.ages) == (1, {"w00": 1, "w01": 1, "w02": 1})


def test_the_fault_of_one_who_is_no_member_is_no_answer():
    m = machine(NeighbourhoodSelection(Ring()))
    ready(m, *WORKERS)
    play(m, Fault("w02", 0, "x", 0.0))
    assert push(m, "w00", "w01") == []
    close = the(Close, push(m, "w03"))
    assert (close.workers, close.faults) == (("w00", "w01", "w03"), {"w02": "x"})


def test_whose_turn_comes_too_late_for_this_model_is_not_asked_for_it():
    m = machine(NeighbourhoodSelection(Ring(), tau=1), workers=tuple(f"w{i:02}" for i in range(8)))
    # The groups are 7 0 1, then 0 1 2, then 1 2 3.
    assert ready(m, *m.policy.workers) == ["w00", "w01", "w02", "w07"]
    the(Close, push(m, "w00", "w01", "w07"))
    assert play(m, Committed(0, 1.0)) == [Open(1), Invite("w03", 1)]


def test_a_vector_that_is_too_old_for_its_turn_is_dropped_and_its_worker_free():
    m = machine(NeighbourhoodSelection(Ring(), tau=0), shortfall="skip", quorum=3)
    assert ready(m, *WORKERS) == ["w00", "w01", "w03"]
    push(m, "w00", "w03")
    play(m, Ready("w00", 1, 0.0), Ready("w03", 1, 0.0))
    # w03 is no member of round 1.
    assert play(m, Tick(10.0))[1:] == [Open(1), Invite("w00", 1), Invite("w02", 1)]
    assert (m.state.held, m.state.parked) == ({}, {"w03": 1})


GRAPHS = [Complete(), Ring(), Exponential(), OnePeer(), Chord(), Halton(), RandomRegular(degree=4)]


@pytest.mark.parametrize("n", [6, 8, 13])
@pytest.mark.parametrize("graph", GRAPHS, ids=repr)
@pytest.mark.parametrize("tau", [None, 2])
def test_everybody_takes_part_equally_often(graph: Graph, n: int, tau: int | None):
    """In any n rounds from a multiple of n, although some are three times as fast as others."""
    workers = tuple(f"w{i:02}" for i in range(n))
    m = machine(NeighbourhoodSelection(graph, tau), workers=workers, rounds=10**6)
    computing: dict[str, int] = {}
    ages, counts = list[int](), dict.fromkeys(workers, 0)
    effects = play(m, *(Ready(worker, 0, 0.0) for worker in workers))
    for step in range(10**6):
        computing |= {e.worker: e.round for e in effects if isinstance(e, Invite)}
        if close := next((e for e in effects if isinstance(e, Close)), None):
            for worker in close.workers:
                counts[worker] += 1
            ages += close.ages.values()
            effects = play(m, Committed(close.round, 0.0))
            if (close.round + 1) % n == 0:
                assert len(set(counts.values())) == 1, counts
                if close.round + 1 == 5 * n:
                    break
            continue
        effects = []
        for i, worker in enumerate(workers):
            if worker in computing and step % (1 + i % 3) == 0:
                round = computing.pop(worker)
                if m.refusal(worker, round) is None:
                    effects += push(m, worker, round=round)
                effects += play(m, Ready(worker, round + 1, 0.0))
                break
    assert tau is None or max(ages) <= tau


def test_a_graph_that_changes_goes_on_once_all_had_their_turn():
    turns = NeighbourhoodSelection(OnePeer())
    assert [turns.group(4, t) for t in range(8)] == [
        (0, 3), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 2), (1, 3),
    ]  # fmt: skip

"""Attendance in partial participation: who has answered a round, who still may, and whether it is over.

As `machine` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

from varangian.server.protocol.adaptive_waiting import WaitingHistory, is_patient
from varangian.server.protocol.decisions import Decision, Verdict
from varangian.server.protocol.events import Close, Phase, RollCall, Seconds, Skip, Worker
from varangian.server.protocol.roll_call import list_names, missed, set_aside, waited
from varangian.server.protocol.state import RunPolicy, RunState

R = TypeVar("R", bound=RollCall)


class Answers(NamedTuple):
    """Of the members of a round: what they have done. Names are sorted."""

    pushed: tuple[Worker, ...]
    faulty: tuple[Worker, ...]
    asked: tuple[Worker, ...]
    """Who was asked and has not answered; nobody once the round is complete without them."""
    away: tuple[Worker, ...]
    """Who has not answered, and will not: it wants a later round, or has declined this one."""
    absent: tuple[Worker, ...]
    """Who has not answered, and has no process that is connected."""
    slow: tuple[Worker, ...]
    """Who has not answered, and is not waited for since it missed too many rounds in a row."""
    others: tuple[Worker, ...]
    """Who of the members has neither answered nor is away, absent or slow."""
    patient: bool
    """Whether the round waits for everybody up to its deadline."""
    wanted: int
    """After how many answers the round is complete."""
    quorum: int
    """The fewest answers with which it closes at its deadline."""

    prompt: bool
    """Whether nobody but those who were asked can answer."""

    @property
    def is_full(self) -> bool:
        """Whether as many have answered as can be waited for."""
        spared = len(self.slow) if self.prompt else 0
        return self.answers + spared >= self.wanted

    @property
    def answers(self) -> int:
        """A proven fault is one, as in `round`."""
        return len(self.pushed) + len(self.faulty)


def count_answers(policy: RunPolicy, state: RunState) -> Answers:
    workers, choice = policy.workers, policy.choice
    members = choice.members(workers, state.round)
    seats = choice.seats(len(workers), state.round)
    wanted = choice.wanted(workers, state, len(ready_workers(state)))
    silent = [w for w in members if w not in state.held and w not in state.faults]
    uploading = useful_uploads(state)
    complete = len(members) - len(silent) >= wanted
    expected = set[Worker]() if complete else set(choice.expected(workers, state))
    away = tuple(w for w in silent if w not in uploading and is_away(state, w))
    # Sets, because each event asks this of all workers: n lookups, and not n squared.
    aside = uploading | set(away)
    absent = tuple(w for w in silent if w in state.absent and w not in aside)
    gone, excused = {*away, *absent}, state.declined.keys() | state.revoked.keys()
    there = tuple(w for w in silent if w not in gone)
    patient = is_patient(state.pace, state.round, state.opened_at, policy.deadline, there)
    least = quorum(policy, seats, wanted)
    often = () if patient else _slow(policy, state, members, expected.intersection(there))
    few = len(often) <= policy.spare(wanted, least)
    slow = tuple(w for w in often if few and w not in state.held and w not in state.faults)
    spared = set(slow)
    return Answers(
        pushed=tuple(w for w in members if w in state.held),
        faulty=tuple(w for w in members if w in state.faults),
        asked=tuple(w for w in silent if w in expected and w not in excused),
        away=away,
        absent=absent,
        slow=slow,
        others=tuple(w for w in there if w not in spared),
        patient=patient,
        prompt=choice.prompt,
        wanted=wanted,
        quorum=least,
    )


def is_late(policy: RunPolicy, state: RunState) -> bool:
    """Whether the deadline of the round has passed."""
    return state.opened_at is not None and state.at >= state.opened_at + policy.deadline


def _slow(
    policy: RunPolicy,
    state: RunState,
    members: tuple[Worker, ...],
    expected: set[Worker],
) -> tuple[Worker, ...]:
    """Of those who have answered, or are expected to: who had missed too many rounds before this one."""
    if policy.waiting is None or not state.pace.missed:
        return ()
    answered = state.held.keys() | state.faults.keys()
    asked = (w for w in members if w in answered or w in expected)
    return tuple(w for w in asked if state.pace.passed_over(policy.waiting, w))


def has_enough(policy: RunPolicy, tally: Answers) -> bool:
    """Whether so many have answered that the adaptive wait may begin, and the round could be closed."""
    return tally.answers >= _enough(policy, tally) and not policy.shortage(
        tally.pushed, tally.faulty, tally.quorum
    )


def _enough(policy: RunPolicy, tally: Answers) -> int:
    return tally.wanted - policy.spare(tally.wanted, tally.quorum)


def took(policy: RunPolicy, state: RunState, tally: Answers) -> Seconds:
    """How long enough answers took: since the round opened, or since their models were given if longer."""
    spans = sorted(state.took.get(worker, 0.0) for worker in tally.pushed)
    honest = _enough(policy, tally) - len(tally.faulty)
    own = spans[min(honest, len(spans)) - 1] if honest > 0 and spans else 0.0
    return max(own, 0.0 if state.opened_at is None else state.at - state.opened_at)


def due(policy: RunPolicy, state: RunState, tally: Answers) -> Seconds | None:
    """When those who are late have been waited for long enough; None if only the deadline says so.

    Counted from the last of their invitations in this round, if there was one.
    """
    if policy.waiting is None or state.opened_at is None or state.quorum_took is None or tally.patient:
        return None
    asked = (state.asked[worker] for worker in tally.others if worker in state.asked)
    start = max((state.opened_at, *(at for round, at in asked if round == state.round)))
    end = start + state.pace.span(policy.waiting, state.quorum_took, policy.deadline)
    return end if end < state.opened_at + policy.deadline else None


def is_over(policy: RunPolicy, state: RunState, tally: Answers) -> bool:
    """Whether those who are late have been waited for long enough, and the others are enough."""
    end = due(policy, state, tally)
    return end is not None and state.at >= end and has_enough(policy, tally)


def missing(kind: type[RollCall], policy: RunPolicy, state: RunState, tally: Answers) -> tuple[Worker, ...]:
    """Who was asked and did not answer in time. In a round that is given up early, only who is absent."""
    if is_late(policy, state) or (kind is Close and is_over(policy, state, tally)):
        return tally.asked
    aside = tally.absent if kind is Skip else tally.absent + tally.slow
    return tuple(w for w in tally.asked if w in aside)


def paced(kind: type[RollCall], policy: RunPolicy, state: RunState, tally: Answers) -> WaitingHistory:
    """What is remembered once the round is over."""
    if policy.waiting is None:
        return state.pace
    return state.pace.over(
        round=state.round,
        opened_at=state.opened_at,
        at=state.at,
        took=state.quorum_took,
        deadline=policy.deadline,
        answered={*tally.pushed, *tally.faulty, *state.declined},
        missing=set(missing(kind, policy, state, tally)) - state.absent,
    )


def is_away(state: RunState, worker: Worker) -> bool:
    """Whether it will not answer this round, although it is there."""
    later = worker not in state.invited and state.parked.get(worker, 0) > state.round
    return later or worker in state.declined


def quorum(policy: RunPolicy, seats: int, there: int) -> int:
    """The fewest answers with which a round closes, where so many could answer at the most."""
    return policy.quorum if policy.fixed else policy.choice.quorum(policy.quorum, seats, there)


def decide(policy: RunPolicy, state: RunState, tally: Answers) -> Decision:
    """Whether the open round can close, and the sentence why or why not."""
    if len(state.faults) > policy.f:
        guilty = (
            f"round {state.round}: {len(state.faults)} proven faulty ({list_names(sorted(state.faults))})"
        )
        return Decision(Verdict.SHORT, f"{guilty}, more than the declared f = {policy.f}")
    said = _describe(state, tally)
    full, late = tally.is_full, is_late(policy, state)
    over = is_over(policy, state, tally)
    if not (full or late or over or not tally.others):
        return Decision(Verdict.WAIT, f"{said}; {_until(policy, state, tally)}")
    lacking = policy.shortage(tally.pushed, tally.faulty, tally.quorum)
    if full and not lacking:
        return Decision(Verdict.CLOSE, f"{said}; {_nobody(tally)}")
    if not tally.others and not ((tally.absent or tally.slow) and lacking):
        said += _not_waited_for(state, tally)
    elif over and not late:
        said += f", missing {list_names(tally.asked)}; "
        return Decision(Verdict.CLOSE, said + waited(state.quorum_took or 0.0, _span(policy, state, tally)))
    elif not late:
        return Decision(Verdict.WAIT, f"{said}; the deadline is still to come")
    else:
        names = f", missing {list_names(tally.asked)}" if tally.asked else ""
        said += f"{names}; the deadline of {policy.deadline:g} s is over"
    if lacking:
        return Decision(Verdict.SHORT, f"{said} and {lacking}")
    return Decision(Verdict.CLOSE, f"{said} and the quorum of {tally.quorum} is met")


def _span(policy: RunPolicy, state: RunState, tally: Answers) -> Seconds:
    """How long the round waits for those who are late, counted from its start."""
    end = due(policy, state, tally)
    return policy.deadline if end is None or state.opened_at is None else end - state.opened_at


def _until(policy: RunPolicy, state: RunState, tally: Answers) -> str:
    span = _span(policy, state, tally)
    if span == policy.deadline:
        return "the deadline is still to come"
    return f"{span:.3g} s for those who are late are not over"


def _nobody(tally: Answers) -> str:
    slow = f"{list_names(tally.slow)} missed too many rounds in a row, and " if tally.slow else ""
    return f"{slow}nobody else is waited for"


def _not_waited_for(state: RunState, tally: Answers) -> str:
    """Who is not waited for."""
    gone = tuple(worker for worker in tally.absent if worker not in state.revoked)
    said = f"; {list_names(gone)} {'is' if len(gone) == 1 else 'are'} absent" if gone else ""
    said += f"; {list_names(tally.slow)} missed too many rounds in a row" if tally.slow else ""
    return f"{said}; the others ({list_names(tally.away)}) are away" if tally.away else said


def waiting_is_useless(policy: RunPolicy, state: RunState, tally: Answers) -> bool:
    """Whether waiting longer is no use.

    Nobody is left who could answer; or those who are away could make up the quorum in a later round.
    """
    there = {*tally.pushed, *tally.away}
    seats = policy.choice.seats(len(policy.workers), state.round)
    least = quorum(policy, seats, len(there) + len(tally.faulty))
    enough = bool(tally.away) and not policy.shortage(there, tally.faulty, least)
    nobody = not (tally.others or tally.absent or tally.slow)
    return enough or nobody or len(state.faults) > policy.f


def _describe(state: RunState, tally: Answers) -> str:
    parts = f"{len(tally.pushed)} pushed, {len(tally.faulty)} faulty"
    there = f"{tally.answers} of {tally.wanted} answers are there ({parts})"
    return f"round {state.round}: {there}{set_aside(state)}"


def is_young_enough(policy: RunPolicy, state: RunState, round: int) -> bool:
    """Whether a vector for this model that arrives now is young enough when it is used."""
    tau, used_in = policy.choice.tau, state.round + (state.phase is Phase.CLOSED)
    return tau is None or used_in - round <= tau


def useful_uploads(state: RunState) -> set[Worker]:
    """Whose open upload counts if it gets through."""
    return {w for w, (round, _) in state.uploads.items() if state.invited.get(w) == round}


def ready_workers(state: RunState) -> tuple[Worker, ...]:
    """Who waits for an invitation and could have one now; sorted."""
    busy = useful_uploads(state) | state.held.keys() | state.faults.keys()
    there = (w for w, round in state.parked.items() if round <= state.round and w not in busy)
    return tuple(sorted(there))


def close_round(policy: RunPolicy, state: RunState, tally: Answers, because: str) -> Close:
    ages = {worker: state.round - state.held[worker][0] for worker in tally.pushed}
    factors = {worker: policy.choice.factor(age) for worker, age in ages.items()}
    return replace(summarise(Close, policy, state, tally, because), ages=ages, factors=factors)


def summarise(kind: type[R], policy: RunPolicy, state: RunState, tally: Answers, because: str) -> R:
    silent = missing(kind, policy, state, tally)
    aside = {w: missed(state.pace.missed.get(w, 0)) for w in silent if w in tally.slow}
    return kind(
        round=state.round,
        workers=tally.pushed,
        faults={worker: state.faults[worker] for worker in sorted(state.faults)},
        missing=silent,
        waited=0.0 if state.opened_at is None else state.at - state.opened_at,
        because=because,
        declined=dict(sorted(state.declined.items())),
        revoked=tuple(sorted(state.revoked)),
        not_waited_for=aside | {w: "absent" for w in silent if w in tally.absent},
    )

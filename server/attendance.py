"""Attendance in partial participation: who has answered a round, who still may, and whether it is over.

As `participation` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

from varangian.server.events import Close, Phase, RollCall, Worker
from varangian.server.invitations import Participation, ParticipationPolicy
from varangian.server.machine import Decision, Verdict
from varangian.server.rollcall import listed, set_aside

R = TypeVar("R", bound=RollCall)


class Tally(NamedTuple):
    """Of the members of a round: what they have done. Names are sorted."""

    pushed: tuple[Worker, ...]
    faulty: tuple[Worker, ...]
    missing: tuple[Worker, ...]
    """Who was asked and has not answered; nobody once the round is complete without them."""
    away: tuple[Worker, ...]
    """Who has not answered, and will not: it wants a later round, or has declined this one."""
    absent: tuple[Worker, ...]
    """Who has not answered, and has no process that is connected."""
    others: int
    """How many of the members have neither answered nor are away or absent."""
    wanted: int
    """After how many answers the round is complete."""
    quorum: int
    """The fewest answers with which it closes at its deadline."""

    @property
    def answers(self) -> int:
        """A proven fault is one, as in `round`."""
        return len(self.pushed) + len(self.faulty)


def tallied(policy: ParticipationPolicy, state: Participation) -> Tally:
    workers, choice = policy.workers, policy.choice
    members = choice.members(workers, state.round)
    seats = choice.seats(len(workers), state.round)
    wanted = choice.wanted(workers, state, len(ready(state)))
    silent = [w for w in members if w not in state.held and w not in state.faults]
    uploading = uploads_of_use(state)
    complete = len(members) - len(silent) >= wanted
    expected = set[Worker]() if complete else set(choice.expected(workers, state))
    away = tuple(w for w in silent if w not in uploading and is_away(state, w))
    # Sets, because each event asks this of all workers: n lookups, and not n squared.
    aside = uploading | set(away)
    absent = tuple(w for w in silent if w in state.absent and w not in aside)
    gone, excused = set(absent), state.declined.keys() | state.revoked.keys()
    early = not is_late(policy, state)
    return Tally(
        pushed=tuple(w for w in members if w in state.held),
        faulty=tuple(w for w in members if w in state.faults),
        missing=tuple(w for w in silent if w in expected and w not in excused and (w in gone or not early)),
        away=away,
        absent=absent,
        others=len(silent) - len(away) - len(absent),
        wanted=wanted,
        quorum=quorum(policy, seats, wanted),
    )


def is_late(policy: ParticipationPolicy, state: Participation) -> bool:
    """Whether the deadline of the round has passed."""
    return state.opened_at is not None and state.at >= state.opened_at + policy.deadline


def is_away(state: Participation, worker: Worker) -> bool:
    """Whether it will not answer this round, although it is there."""
    later = worker not in state.invited and state.parked.get(worker, 0) > state.round
    return later or worker in state.declined


def quorum(policy: ParticipationPolicy, seats: int, there: int) -> int:
    """The fewest answers with which a round closes, where so many could answer at the most."""
    return policy.quorum if policy.fixed else policy.choice.quorum(policy.quorum, seats, there)


def decided(policy: ParticipationPolicy, state: Participation, tally: Tally) -> Decision:
    """Whether the open round can close, and the sentence why or why not."""
    if len(state.faults) > policy.f:
        guilty = f"round {state.round}: {len(state.faults)} proven faulty ({listed(sorted(state.faults))})"
        return Decision(Verdict.SHORT, f"{guilty}, more than the declared f = {policy.f}")
    said = _said(state, tally)
    full, late = tally.answers >= tally.wanted, is_late(policy, state)
    if not (full or late or tally.others == 0):
        return Decision(Verdict.WAIT, f"{said}; the deadline is still to come")
    lacking = policy.shortage(tally.pushed, tally.faulty, tally.quorum)
    if full and not lacking:
        return Decision(Verdict.CLOSE, f"{said}; nobody else is waited for")
    if tally.others == 0 and not (tally.absent and lacking):
        said += _without(state, tally)
    elif not late:
        return Decision(Verdict.WAIT, f"{said}; the deadline is still to come")
    else:
        missing = f", missing {listed(tally.missing)}" if tally.missing else ""
        said += f"{missing}; the deadline of {policy.deadline:g} s is over"
    if lacking:
        return Decision(Verdict.SHORT, f"{said} and {lacking}")
    return Decision(Verdict.CLOSE, f"{said} and the quorum of {tally.quorum} is met")


def _without(state: Participation, tally: Tally) -> str:
    """Who is not waited for."""
    gone = tuple(worker for worker in tally.absent if worker not in state.revoked)
    absent = f"; {listed(gone)} {'is' if len(gone) == 1 else 'are'} absent" if gone else ""
    return f"{absent}; the others ({listed(tally.away)}) are away" if tally.away else absent


def in_vain(policy: ParticipationPolicy, state: Participation, tally: Tally) -> bool:
    """Whether waiting longer is no use.

    Nobody is left who could answer; or those who are away could make up the quorum in a later round.
    """
    there = {*tally.pushed, *tally.away}
    seats = policy.choice.seats(len(policy.workers), state.round)
    least = quorum(policy, seats, len(there) + len(tally.faulty))
    enough = bool(tally.away) and not policy.shortage(there, tally.faulty, least)
    return enough or tally.others + len(tally.absent) == 0 or len(state.faults) > policy.f


def _said(state: Participation, tally: Tally) -> str:
    parts = f"{len(tally.pushed)} pushed, {len(tally.faulty)} faulty"
    there = f"{tally.answers} of {tally.wanted} answers are there ({parts})"
    return f"round {state.round}: {there}{set_aside(state)}"


def young(policy: ParticipationPolicy, state: Participation, round: int) -> bool:
    """Whether a vector for this model that arrives now is young enough when it is used."""
    tau, used_in = policy.choice.tau, state.round + (state.phase is Phase.CLOSED)
    return tau is None or used_in - round <= tau


def uploads_of_use(state: Participation) -> set[Worker]:
    """Whose open upload counts if it gets through."""
    return {w for w, (round, _) in state.uploads.items() if state.invited.get(w) == round}


def ready(state: Participation) -> tuple[Worker, ...]:
    """Who waits for an invitation and could have one now; sorted."""
    busy = uploads_of_use(state) | state.held.keys() | state.faults.keys()
    there = (w for w, round in state.parked.items() if round <= state.round and w not in busy)
    return tuple(sorted(there))


def closed(policy: ParticipationPolicy, state: Participation, tally: Tally, because: str) -> Close:
    ages = {worker: state.round - state.held[worker][0] for worker in tally.pushed}
    factors = {worker: policy.choice.factor(age) for worker, age in ages.items()}
    return replace(ended(Close, state, tally, because), ages=ages, factors=factors)


def ended(kind: type[R], state: Participation, tally: Tally, because: str) -> R:
    return kind(
        round=state.round,
        workers=tally.pushed,
        faults={worker: state.faults[worker] for worker in sorted(state.faults)},
        missing=tally.missing,
        waited=0.0 if state.opened_at is None else state.at - state.opened_at,
        because=because,
        declined=dict(sorted(state.declined.items())),
        revoked=tuple(sorted(state.revoked)),
    )

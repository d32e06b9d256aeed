"""Who has answered a round, who may still, and whether it is over: what participation is decided by.

As `participation` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

from varangian.server.events import Close, Phase, RollCall, Seconds, Worker
from varangian.server.invitations import Participation, ParticipationPolicy
from varangian.server.machine import Decision, Verdict
from varangian.server.rollcall import listed

R = TypeVar("R", bound=RollCall)


class Tally(NamedTuple):
    """Of the members of a round: what they have done. Names are sorted."""

    pushed: tuple[Worker, ...]
    faulty: tuple[Worker, ...]
    missing: tuple[Worker, ...]
    """Who was asked and has not answered; nobody once the round is complete without them."""
    away: tuple[Worker, ...]
    """Who has not answered, and will not: it wants a later round."""
    others: int
    """How many of the members have neither answered nor are away."""
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
    complete = len(members) - len(silent) >= wanted
    expected = () if complete else choice.expected(workers, state)
    away = tuple(w for w in silent if w not in state.invited and state.parked.get(w, 0) > state.round)
    return Tally(
        pushed=tuple(w for w in members if w in state.held),
        faulty=tuple(w for w in members if w in state.faults),
        missing=tuple(w for w in silent if w in expected),
        away=away,
        others=len(silent) - len(away),
        wanted=wanted,
        quorum=choice.quorum(policy.quorum, seats, wanted),
    )


def decided(policy: ParticipationPolicy, state: Participation, tally: Tally, at: Seconds) -> Decision:
    """Whether the open round can close, and the sentence why or why not."""
    if len(state.faults) > policy.f:
        guilty = f"round {state.round}: {len(state.faults)} proven faulty ({listed(sorted(state.faults))})"
        return Decision(
            Verdict.SHORT, f"{guilty}, more than the declared f = {policy.f}; or the model has diverged"
        )
    said = _said(state, tally)
    met = tally.answers >= tally.quorum
    if met and tally.answers >= tally.wanted:
        return Decision(Verdict.CLOSE, f"{said}; nobody else is waited for")
    if tally.others == 0:
        said += f"; the others ({listed(tally.away)}) are away"
    elif state.opened_at is None or at < state.opened_at + policy.deadline:
        return Decision(Verdict.WAIT, f"{said}; the deadline is still to come")
    else:
        missing = f", missing {listed(tally.missing)}" if tally.missing else ""
        said += f"{missing}; the deadline of {policy.deadline:g} s is over"
    if met:
        return Decision(Verdict.CLOSE, f"{said} and the quorum of {tally.quorum} is met")
    return Decision(Verdict.SHORT, f"{said} and the quorum of {tally.quorum} is not met")


def in_vain(policy: ParticipationPolicy, state: Participation, tally: Tally) -> bool:
    """Whether waiting longer is no use, since those who are away could be a quorum in a later round."""
    there = tally.answers + len(tally.away)
    seats = policy.choice.seats(len(policy.workers), state.round)
    enough = bool(tally.away) and there >= policy.choice.quorum(policy.quorum, seats, there)
    return enough or len(state.faults) > policy.f


def _said(state: Participation, tally: Tally) -> str:
    parts = f"{len(tally.pushed)} pushed, {len(tally.faulty)} faulty"
    return f"round {state.round}: {tally.answers} of {tally.wanted} answers are there ({parts})"


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
    )

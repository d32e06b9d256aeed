"""Who may push for which model: how workers that come and go take part in a run, without any I/O.

Beside the round machine, which decides whose push of a round counts, this one decides who is asked for one.
The same rules hold: no clock, no tensor, no thread and no wire; time comes in with each event; an event
that is refused changes nothing; one pure function, `moved`, is the whole protocol.

Theory of operation. A worker asks for a model (`Ready`) and is parked until the choice of the run takes it:
everyone, the K that were away longest, one neighbourhood of a graph after the other, or whoever comes
(`choices`). Then it is invited: its pull is answered with the model of the open round, and for that model
it may push. Nobody else may.

    parked  --Invite-->  invited  --Arrived-->  arrived  --Reduce or Closed-->  taken  --Opened-->  free
                                  --Left-->  free     --Faulty-->  out until the next round opens

The round is complete when as many as the choice wants have answered, or at the deadline once a quorum has.
`Reduce` says whose vectors to aggregate; whoever decides that by other rules says `Closed` instead. Between
that and `Opened` nobody is invited, because the next model is about to come.

An invitation holds for its own round, or for `tau` rounds more: a vector is as old as the model it was made
for, counted to the round in which it is used. A worker has one place, from its invitation until its vector
is used; so it can fill nothing twice, however fast it is.

There is no state in which a run waits for a worker that is gone: who leaves frees its seat, and with a
deadline a round closes without those who are silent. Below the quorum it waits, as it was told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias, TypeVar

from varangian.server.events import Seconds, Tick, Worker
from varangian.server.invitations import (
    Admit,
    Arrival,
    Arrived,
    Began,
    Closed,
    Effect,
    Event,
    Faulty,
    Invite,
    Left,
    Opened,
    Participation,
    ParticipationPolicy,
    Ready,
    Reduce,
    TurnAway,
    Unwelcome,
)

__all__ = ["ParticipationMachine", "moved"]

V = TypeVar("V")
Moved: TypeAlias = tuple[Participation, tuple[Effect, ...]]


class ParticipationMachine:
    """The participation of one run. `handle` is the only way to change it."""

    def __init__(self, policy: ParticipationPolicy) -> None:
        self.policy = policy
        self.state = Participation()

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Move, and say what follows. The answer to a worker comes first."""
        self.state, effects = moved(self.policy, self.state, event)
        return effects

    @property
    def wake_at(self) -> Seconds | None:
        """When the next `Tick` is due; None when nothing depends on time."""
        return wake_at(self.policy, self.state)


def moved(policy: ParticipationPolicy, state: Participation, event: Event) -> Moved:
    """The whole protocol: a pure function of state and event."""
    if not isinstance(event, Tick | Closed | Opened):
        code = refused(policy, state, event)
        if code is not None:
            return state, (TurnAway(event.worker, code, state.round),)
    state = replace(state, at=max(state.at, event.at))
    match event:
        case Ready(worker, round) if _again(state, worker, round):
            return state, (Invite(worker, state.round),)
        case Began(worker, round):
            return state, (Admit(worker, round),)
        case Opened():
            return _settled(policy, _opened(policy, state, event))
        case Closed(round):
            assert round == state.round, f"round {round} was closed in round {state.round}"
            return _closed(state), ()
        case _:
            return _settled(policy, _changed(state, event))


def refused(
    policy: ParticipationPolicy, state: Participation, event: Ready | Left | Began | Arrived | Faulty
) -> Unwelcome | None:
    """Why a worker may not do this now; None when it may."""
    if event.worker not in policy.workers:
        return Unwelcome.UNKNOWN_WORKER
    if isinstance(event, Ready | Left):
        return None
    # The retry of a push that counts is the round machine's to answer, as is a second, different one.
    counted = state.arrived.get(event.worker) == event.round and event.worker not in state.taken
    if counted and not isinstance(event, Arrived):
        return None
    if state.invited.get(event.worker) != event.round:
        return Unwelcome.NOT_INVITED
    return Unwelcome.TOO_OLD if _target(state) - event.round > policy.choice.tau else None


def wake_at(policy: ParticipationPolicy, state: Participation) -> Seconds | None:
    """When time alone changes something; None if it never does."""
    if state.reducing or state.opened_at is None:
        return None
    deadline = None if policy.deadline is None else state.opened_at + policy.deadline
    moments = (deadline, policy.choice.wake_at(state))
    return min((moment for moment in moments if moment is not None and moment > state.at), default=None)


def _target(state: Participation) -> int:
    """The round in which a vector that arrives now will be used."""
    return state.round + state.reducing


def _again(state: Participation, worker: Worker, round: int) -> bool:
    """Whether the answer to a pull got lost: the same invitation is given again."""
    return not state.reducing and state.invited.get(worker) == state.round and round <= state.round


def _changed(state: Participation, event: Event) -> Participation:
    """What an event that is in order does to the lists."""
    match event:
        case Ready(worker, round, at):
            opened_at = at if state.opened_at is None else state.opened_at
            parked = {**state.parked, worker: round}
            return replace(
                state, opened_at=opened_at, parked=parked, invited=_without(state.invited, worker)
            )
        case Left(worker):
            parked, invited = _without(state.parked, worker), _without(state.invited, worker)
            return replace(state, parked=parked, invited=invited)
        case Arrived(worker, round):
            arrived = {**state.arrived, worker: round}
            return replace(state, arrived=arrived, invited=_without(state.invited, worker))
        case Faulty(worker):
            arrived, invited = _without(state.arrived, worker), _without(state.invited, worker)
            return replace(state, arrived=arrived, invited=invited, faulty=state.faulty | {worker})
        case _:
            return state


def _settled(policy: ParticipationPolicy, state: Participation) -> Moved:
    """Close the round if it is time to; else invite whom there is a place for."""
    because = None if state.reducing else _complete(policy, state)
    if because is None:
        return _invited(policy, state)
    arrivals = (
        Arrival(worker, age, policy.choice.factor(age))
        for worker, round in sorted(state.arrived.items())
        for age in (state.round - round,)
    )
    reduce = Reduce(state.round, tuple(arrivals), tuple(sorted(state.faulty)), because)
    return _closed(state), (reduce,)


def _complete(policy: ParticipationPolicy, state: Participation) -> str | None:
    """Why the open round need not wait any longer; None while it should."""
    answered = len(state.arrived) + len(state.faulty)
    wanted = policy.choice.wanted(policy.workers, state.round)
    tally = f"round {state.round}: {answered} of {wanted} answers are there"
    if answered >= wanted:
        return f"{tally}; nobody else is waited for"
    if policy.deadline is None or state.opened_at is None or answered < policy.quorum:
        return None
    late = state.at >= state.opened_at + policy.deadline
    return f"{tally}; the deadline of {policy.deadline:g} s is over" if late else None


def _invited(policy: ParticipationPolicy, state: Participation) -> Moved:
    if state.reducing:
        return state, ()
    busy = state.arrived.keys() | state.faulty
    ready = (w for w, round in sorted(state.parked.items()) if round <= state.round and w not in busy)
    chosen = policy.choice.next(policy.workers, state, tuple(ready), state.at)
    now = dict.fromkeys(chosen, state.round)
    state = replace(
        state,
        parked={worker: round for worker, round in state.parked.items() if worker not in now},
        invited={**state.invited, **now},
        last={**state.last, **now},
    )
    return state, tuple(Invite(worker, state.round) for worker in chosen)


def _closed(state: Participation) -> Participation:
    return replace(state, reducing=True, taken=frozenset(state.arrived))


def _opened(policy: ParticipationPolicy, state: Participation, event: Opened) -> Participation:
    assert event.round == state.round + 1, f"round {event.round} was opened after round {state.round}"
    left = {
        worker: round
        for worker, round in state.arrived.items()
        if worker not in state.taken and event.round - round <= policy.choice.tau
    }
    return replace(
        state,
        round=event.round,
        opened_at=event.at,
        reducing=False,
        arrived=left,
        faulty=frozenset(),
        taken=frozenset(),
    )


def _without(mapping: Mapping[Worker, V], worker: Worker) -> dict[Worker, V]:
    return {key: value for key, value in mapping.items() if key != worker}

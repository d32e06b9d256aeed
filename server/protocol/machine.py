"""Partial participation: the protocol of a run in which some workers push in each round, without any I/O.

Beside `synchronous`, for runs in which not everybody pushes in every round. Its rules hold here, too: no
clock, no tensor, no thread and no wire; time comes in with each event; an event that is refused changes
nothing; every decision has its sentence; one pure function, `transition`, is the whole protocol. Its events
and effects mean the same, except that the round of a vector is the round whose model it was made for.

Theory of operation. A worker asks for a model (`Ready`) and is parked until the choice of the run takes it:
the k that were away longest, whoever comes, whose turn it is (`selection`). Then it is invited: its pull is
answered with the model of the open round, and for that model it may push, once. Nobody else may.

    parked  --Invite-->  invited  --Offer, Push-->  held  --Close-->  taken  --Committed, Skipped-->  free
                         invited  --Left-->  free          too old  -->  free
    Fault: out until the next round opens

That is NOTIFY-ACK of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and Kruus, 2016),
in its strong form: the push is the notification, and the answer to the next pull is the acknowledgement,
which comes after the vector was used. A worker has one place from its invitation until then. So there is
at most one vector of it that was not used; its row is written by one upload at a time, only while no vector
is held there, and read only while one is: what is aggregated is never torn or mixed, and fills nothing
twice. Whatever is lost on the way is said again: an invitation is given again, and a push with the round
and the digest of the one that is held, or was the last one, is a duplicate. Another vector for the same
model is refused (`COUNTED`): the first complete one counts.

A round is complete when as many have answered as the choice wants, or nobody is left who could; or at the
deadline, if the quorum has. None closes whose rows do not meet the condition of the rule. Otherwise the
policy decides, as in `round`; but nobody waits for those who have declined (`Decline`) or said that they
are away until a later round, since that round has to come. While a round is being
aggregated nobody is invited, because the next model is about to come; vectors may arrive, for the next.

A worker whose certificate was revoked is withdrawn (`Withdraw`), as in `round`: its pull, its invitation
and the vector of it that waits are gone, and its open upload cannot count any more.

A vector may be `tau` rounds old when it is used. One that is too old while it waits for its turn is
dropped, and its worker is free for the current model.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeAlias

from varangian.protos.refusals import Refusal
from varangian.server.protocol.admission import refusal_of, standing
from varangian.server.protocol.decisions import Decision, Verdict
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
    Forget,
    Gone,
    Invite,
    Left,
    Offer,
    Open,
    Phase,
    Present,
    Push,
    Ready,
    Reject,
    RollCall,
    Seconds,
    Skip,
    Skipped,
    Stop,
    Withdraw,
    Worker,
)
from varangian.server.protocol.quorum import (
    close_round,
    count_answers,
    decide,
    due,
    has_enough,
    paced,
    ready_workers,
    summarise,
    took,
    useful_uploads,
    waiting_is_useless,
)
from varangian.server.protocol.roll_call import withdraw, without
from varangian.server.protocol.state import NEVER, RunPolicy, RunState

__all__ = ["ParticipationMachine", "transition"]

Moved: TypeAlias = tuple[RunState, tuple[Effect, ...]]


class ParticipationMachine:
    """The protocol of one run. `handle` is the only way to change it."""

    invites = True

    def __init__(self, policy: RunPolicy) -> None:
        self.policy = policy
        self.state = RunState()

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Move, and say what follows. The answer to a worker comes first."""
        self.state, effects = transition(self.policy, self.state, event)
        return effects

    @property
    def wake_at(self) -> Seconds | None:
        """When the next `Tick` is due; None when nothing depends on time."""
        return wake_at(self.policy, self.state)

    def decision(self, at: Seconds) -> Decision:
        """What the open round is waiting for, as a sentence."""
        now = replace(self.state, at=max(self.state.at, at))
        return decide(self.policy, now, count_answers(self.policy, now))

    def standing(self, worker: Worker, round: int) -> Refusal | None:
        """Why a vector of this worker, made for the model of this round, would not count any more."""
        return standing(self.policy, self.state, worker, round)


def transition(policy: RunPolicy, state: RunState, event: Event) -> Moved:
    """The whole protocol: a pure function of state and event."""
    refusal = refusal_of(policy, state, event)
    if refusal is Refusal.DUPLICATE and isinstance(event, Offer):
        return state, (Duplicate(event.worker, event.round),)
    if refusal is not None:
        return _noticed(policy, state, event, refusal), (Reject(refusal, state.round),)
    changed, effects = _apply(policy, replace(state, at=max(state.at, event.at)), event)
    settled, following = _settle(policy, changed)
    return settled, (*effects, *following)


def wake_at(policy: RunPolicy, state: RunState) -> Seconds | None:
    """When time alone changes something; None if it never does."""
    if state.phase is not Phase.OPEN or state.opened_at is None:
        return None
    deadline = None if state.overdue else state.opened_at + policy.deadline
    late = None if state.quorum_took is None else due(policy, state, count_answers(policy, state))
    moments = (deadline, late, policy.choice.wake_at(state))
    return min((moment for moment in moments if moment is not None and moment > state.at), default=None)


def _apply(policy: RunPolicy, state: RunState, event: Event) -> Moved:
    """What an event that is in order does by itself."""
    match event:
        case Ready(worker, round):
            return _ask(_start(state), worker, round)
        case Present(worker):
            pace = state.pace.forgiving(worker)
            return replace(state, absent=state.absent - {worker}, pace=pace), ()
        case Absent(worker):
            gone = replace(state, absent=state.absent | {worker})
            return _leave(gone, worker), ()
        case Withdraw(worker, reason):
            return _withdraw(state, worker, reason), (Forget(worker),)
        case Decline(worker, _, reason):
            declined, revoked = {worker: reason, **state.declined}, without(state.revoked, worker)
            return replace(_uninvite(state, worker), declined=declined, revoked=revoked), ()
        case Left(worker):
            return _leave(state, worker), ()
        case Offer(worker, round, digest):
            uploads, absent = {**state.uploads, worker: (round, digest)}, state.absent - {worker}
            revoked = without(state.revoked, worker)
            return replace(state, uploads=uploads, absent=absent, revoked=revoked), (Accept(worker, round),)
        case Push(worker, round, digest):
            held = {**state.held, worker: (round, digest)}
            asked_at = state.asked.get(worker, (round, state.at))[1]
            state = replace(state, took={**state.took, worker: state.at - asked_at})
            uploads, declined = without(state.uploads, worker), without(state.declined, worker)
            arrived = replace(_uninvite(state, worker), held=held)
            return replace(arrived, uploads=uploads, declined=declined), (Accept(worker, round),)
        case Fault(worker, _, reason):
            return _record_fault(state, worker, reason), ()
        case Gone(worker):
            return _end_upload(state, worker)
        case Committed():
            return _open(policy, replace(state, skips=0))
        case Skipped(_, reason):
            return _give_up(policy, state, reason)
        case Stop(reason):
            return _finish(state, reason)
        case _:
            return state, ()


def _settle(policy: RunPolicy, state: RunState) -> Moved:
    """Close the round, or give it up, if it is time to; else invite whom there is a place for."""
    effects: tuple[Effect, ...] = ()
    over = True
    while over and state.phase is Phase.OPEN and state.opened_at is not None:
        round = state.round
        state, following = _judge(policy, state)
        effects += following
        over = state.round > round
    return state, effects


def _judge(policy: RunPolicy, state: RunState) -> Moved:
    tally = count_answers(policy, state)
    if policy.waiting is not None and state.quorum_took is None and has_enough(policy, tally):
        state = replace(state, quorum_took=took(policy, state, tally))
    verdict, because = decide(policy, state, tally)
    if verdict is Verdict.CLOSE:
        close, pace = close_round(policy, state, tally, because), paced(Close, policy, state, tally)
        state = replace(state, phase=Phase.CLOSED, closed=close, overdue=False, declined={}, pace=pace)
        return state, (close,)
    if verdict is Verdict.SHORT:
        if policy.shortfall != "wait" or waiting_is_useless(policy, state, tally):
            skip, pace = summarise(Skip, policy, state, tally, because), paced(Skip, policy, state, tally)
            return _skip(policy, replace(state, declined={}, pace=pace), skip)
        state = replace(state, overdue=True)
    return _invite(policy, state)


def _invite(policy: RunPolicy, state: RunState) -> Moved:
    there = ready_workers(state)
    chosen = policy.choice.next(policy.workers, state, there) if there else ()
    if not chosen:
        return state, ()
    first = not (state.invited or state.held or state.faults)
    late = frozenset(worker for worker in policy.workers if worker not in state.parked)
    now = dict.fromkeys(chosen, state.round)
    state = replace(
        state,
        parked={worker: round for worker, round in state.parked.items() if worker not in now},
        invited={**state.invited, **now},
        last={**state.last, **now},
        asked={**state.asked, **dict.fromkeys(chosen, (state.round, state.at))},
        before={**state.before, **{worker: state.last.get(worker, NEVER) for worker in chosen}},
        given_up=late if first else state.given_up,
    )
    return state, tuple(Invite(worker, state.round) for worker in chosen)


def _noticed(policy: RunPolicy, state: RunState, event: Event, refusal: Refusal) -> RunState:
    """A vector that is refused for being late shows that its worker is there, and how fast it is."""
    late = isinstance(event, Offer) and refusal in (Refusal.TOO_OLD, Refusal.NOT_INVITED)
    if policy.waiting is None or not isinstance(event, Offer) or not late:
        return state
    round, asked_at = state.asked.get(event.worker, (NEVER, 0.0))
    if round != event.round:
        return state
    pace = state.pace.noticed(policy.waiting, event.worker, event.at - asked_at, policy.deadline)
    return replace(state, pace=pace)


def _ask(state: RunState, worker: Worker, round: int) -> Moved:
    """The worker waits; if it has the model of this round, its answer was lost, and it is given again."""
    state = replace(
        state,
        parked={**state.parked, worker: round},
        given_up=state.given_up - {worker},
        absent=state.absent - {worker},
    )
    if worker in useful_uploads(state):
        return state, ()  # it may be heard of before the end of an upload that is long dead
    if state.phase is Phase.OPEN and state.invited.get(worker) == state.round:
        if round <= state.round:
            return replace(state, parked=without(state.parked, worker)), (Invite(worker, state.round),)
        # It declines in time for others, so this was no participation.
        state = replace(state, last={**state.last, worker: state.before[worker]})
    return _uninvite(state, worker), ()


def _end_upload(state: RunState, worker: Worker) -> Moved:
    state = replace(state, uploads=without(state.uploads, worker))
    if worker in state.parked and worker in state.invited:
        return _ask(state, worker, state.parked[worker])
    return state, ()


def _leave(state: RunState, worker: Worker) -> RunState:
    state = replace(state, parked=without(state.parked, worker))
    return state if worker in useful_uploads(state) else _uninvite(state, worker)


def _withdraw(state: RunState, worker: Worker, reason: str) -> RunState:
    held = state.held if worker in state.taken else without(state.held, worker)
    state = replace(_uninvite(state, worker), held=held, parked=without(state.parked, worker))
    return replace(state, **withdraw(state, worker, reason))


def _record_fault(state: RunState, worker: Worker, reason: str) -> RunState:
    held, declined = without(state.held, worker), without(state.declined, worker)
    state = replace(_uninvite(state, worker), held=held, declined=declined)
    if state.phase is Phase.CLOSED:
        return replace(state, accused={**state.accused, worker: reason})
    return replace(state, faults={**state.faults, worker: reason})


def _give_up(policy: RunPolicy, state: RunState, because: str) -> Moved:
    close = state.closed
    assert close is not None, f"round {state.round} was not closed"
    shared = {field.name: getattr(close, field.name) for field in fields(RollCall)}
    skip = Skip(**{**shared, "because": because})
    return _skip(policy, state, skip)


def _skip(policy: RunPolicy, state: RunState, skip: Skip) -> Moved:
    state = replace(state, skips=state.skips + 1)
    if policy.shortfall == "fail":
        state, effects = _finish(state, skip.because)
    elif state.skips == policy.max_skips:
        reason = f"{state.skips} rounds in a row had no update; the last, {skip.because}"
        state, effects = _finish(state, reason)
    else:
        state, effects = _open(policy, state)
    return state, (skip, *effects)


def _open(policy: RunPolicy, state: RunState) -> Moved:
    """The next round; what was aggregated is used, and what is too old by now is dropped."""
    round, tau, taken = state.round + 1, policy.choice.tau, state.taken
    oldest = 0 if tau is None else round - tau
    invited = {worker: model for worker, model in state.invited.items() if model >= oldest}
    held = {w: vector for w, vector in state.held.items() if w not in taken and vector[0] >= oldest}
    following = replace(
        state,
        round=round,
        phase=Phase.OPEN,
        opened_at=state.at,
        overdue=False,
        quorum_took=None,
        invited=invited,
        before={worker: state.before[worker] for worker in invited},
        held=held,
        # Who pushed it was told that it counts, and hears the same when the reply was lost.
        used={**state.used, **{w: vector for w, vector in state.held.items() if w not in held}},
        closed=None,
        faults=state.accused,
        accused={},
        revoked={worker: why for worker, why in state.revoked.items() if worker in state.absent},
    )
    if round == policy.rounds:
        return _finish(following, f"all {policy.rounds} rounds are done")
    return following, (Open(round),)


def _finish(state: RunState, reason: str) -> Moved:
    return replace(state, phase=Phase.FINISHED, reason=reason), (Finish(reason),)


def _start(state: RunState) -> RunState:
    return state if state.opened_at is not None else replace(state, opened_at=state.at)


def _uninvite(state: RunState, worker: Worker) -> RunState:
    return replace(state, invited=without(state.invited, worker), before=without(state.before, worker))

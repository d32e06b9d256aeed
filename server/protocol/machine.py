"""State machine of a run: `Machine.handle` takes an event and returns its effects, without any I/O.

`transition` is the whole protocol as a pure function; `varangian.server.protocol` explains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias, TypeVar

from varangian.protos.refusals import Refusal
from varangian.server.protocol.admission import refusal_of, refusal_of_vector
from varangian.server.protocol.deadlines import notice_late
from varangian.server.protocol.events import (
    Absent,
    Accept,
    Close,
    Committed,
    Decline,
    Drain,
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
    Present,
    Push,
    Ready,
    Reject,
    RollCall,
    Seconds,
    Settled,
    Skip,
    Skipped,
    Stop,
    Withdraw,
    Worker,
)
from varangian.server.protocol.membership import drained, effect_of, with_members
from varangian.server.protocol.quorum import (
    Answers,
    Decision,
    Verdict,
    count_answers,
    decide,
    describe,
    due,
    has_enough,
    must_wait,
    quorum_time,
    ready_workers,
    remember,
    remember_arrivals,
    summarise,
    summarise_close,
    useful_uploads,
    waiting_is_useless,
)
from varangian.server.protocol.resumption import without_connections
from varangian.server.protocol.state import (
    NEVER,
    VOID,
    Phase,
    RunPolicy,
    RunState,
    dump_state,
    restore_state,
)

V = TypeVar("V")
Moved: TypeAlias = tuple[RunState, tuple[Effect, ...]]

LATE = frozenset({Refusal.STALE, Refusal.TOO_OLD, Refusal.NOT_INVITED})
"""The refusals of an offer whose round is over."""


class Machine:
    """The protocol of one run. `handle` is the only way to change it."""

    def __init__(self, policy: RunPolicy) -> None:
        self.policy = policy
        self.state = RunState()

    @property
    def by_invitation(self) -> bool:
        """Whether a pull is a `Ready` and its answer an `Invite`; otherwise anybody may pull any time."""
        return self.policy.by_invitation

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Move, and say what follows. The answer to a worker comes first."""
        self.state, effects = transition(self.policy, self.state, event)
        self.policy = self.policy.at(self.state.round)
        return effects

    def follow(self, following: RunPolicy) -> int:
        """Go on with other workers, quorum and f from the next round on, which is returned.

        A change that was to come is replaced. `Drain` the workers that leave, or `Withdraw` them.
        """
        following = replace(following, first=self.state.round + 1, following=None)
        self.policy = replace(self.policy, following=following)
        return following.first

    def dump(self) -> dict[str, Any]:
        """The state as a checkpoint keeps it."""
        return dump_state(self.state)

    def restore(self, plain: Mapping[str, Any], *, connected: bool) -> None:
        """Go on from what `dump` gave: exactly, or without the connections and clocks of another process.

        Raises:
            ValueError: it is no such state.
        """
        state = restore_state(plain)
        self.state = state if connected else without_connections(self.policy, state)

    @property
    def wake_at(self) -> Seconds | None:
        """The time at which the next `Tick` is due; None when nothing depends on time."""
        return wake_at(self.policy, self.state)

    @property
    def has_begun(self) -> bool:
        """Whether somebody has pushed for the open round, and others who are there may still answer it."""
        return bool(self.state.held) and bool(count_answers(self.policy, self.state).others)

    def decision(self, at: Seconds) -> Decision:
        """The condition that the open round waits for, as a sentence."""
        now = self.state.replace(at=max(self.state.at, at))
        return decide(self.policy, now, count_answers(self.policy, now))

    def refusal(self, worker: Worker, round: int) -> Refusal | None:
        """Why a vector of this worker, made for the model of this round, would not count any more."""
        return refusal_of_vector(self.policy, self.state, worker, round)


def transition(policy: RunPolicy, state: RunState, event: Event) -> Moved:
    """The whole protocol: a pure function of state and event."""
    refusal = refusal_of(policy, state, event)
    if refusal is Refusal.DUPLICATE and isinstance(event, Offer):
        return state, (Duplicate(event.worker, event.round),)
    if refusal is not None:
        return _notice_late(policy, state, event, refusal), (Reject(refusal, state.round),)
    if isinstance(event, Offer) and _changes_no_decision(state, event):
        return _apply(policy, state, event)
    now = state if event.at <= state.at else state.replace(at=event.at)
    changed, effects = _apply(policy, now, event)
    settled, following = _settle(policy, changed)  # maybe of a later round, with other workers
    return settled, (*effects, *following)


def wake_at(policy: RunPolicy, state: RunState) -> Seconds | None:
    """The next time at which time alone changes something; None if it never does."""
    if state.phase is not Phase.OPEN or state.opened_at is None:
        return None
    deadline = None if state.overdue else state.opened_at + policy.deadline_of(state)
    late = None if state.quorum_took is None else due(policy, state, count_answers(policy, state))
    moments = (deadline, late, policy.selection.wake_at(state))
    return min((moment for moment in moments if moment is not None and moment > state.at), default=None)


def _changes_no_decision(state: RunState, offer: Offer) -> bool:
    """Whether an upload begins at a moment for which all is decided: it only adds to what is waited for."""
    return state.opened_at is not None and offer.at <= state.at and offer.worker not in state.parked


def _apply(policy: RunPolicy, state: RunState, event: Event) -> Moved:
    """The state after an event that is in order."""
    match event:
        case Offer(worker, round, digest):
            uploads, absent = {**state.uploads, worker: (round, digest)}, state.absent - {worker}
            state, revoked = _start(state), without(state.revoked, worker)
            return state.replace(uploads=uploads, absent=absent, revoked=revoked), (Accept(worker, round),)
        case Push(worker, round, digest):
            return _hold(state, worker, round, digest), (Accept(worker, round),)
        case Ready(worker, round) if policy.by_invitation:
            return _ask(policy, _start(state), worker, round)
        case Present(worker):
            history = state.history.notice_return(worker, state.round)
            return state.replace(absent=state.absent - {worker}, history=history), ()
        case Absent(worker):
            gone = state.replace(absent=state.absent | {worker})
            return _leave(policy, gone, worker), ()
        case Withdraw(worker, reason):
            return _withdraw(state, worker, reason), (Forget(worker),)
        case Drain(worker):
            return drained(policy, state, worker), ()
        case Decline(worker, _, reason):
            declined, revoked = {worker: reason, **state.declined}, without(state.revoked, worker)
            state = _uninvite(_start(state), worker)
            return state.replace(declined=declined, revoked=revoked), ()
        case Left(worker):
            return _leave(policy, state, worker), ()
        case Settled(_, digests):
            return _hold_all(policy, state, digests)
        case Fault(worker, _, reason):
            return _record_fault(_start(state), worker, reason), ()
        case Gone(worker):
            return _end_upload(policy, state, worker)
        case Committed():
            return _open(policy, state.replace(skips=0))
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
        state, following = _judge(policy.at(round), state)
        effects += following
        over = state.round > round
    return state, effects


def _judge(policy: RunPolicy, state: RunState) -> Moved:
    answers = count_answers(policy, state)
    if policy.waiting is not None and state.quorum_took is None and has_enough(policy, answers):
        state = state.replace(quorum_took=quorum_time(policy, state, answers))
    if must_wait(policy, state, answers):
        return _invite(policy, state)
    verdict, because = decide(policy, state, answers)
    if verdict is Verdict.CLOSE:
        return _close(policy, state, answers, because)
    if verdict is Verdict.SHORT:
        if policy.shortfall != "wait" or waiting_is_useless(policy, state, answers):
            skip = summarise(Skip, policy, state, answers, because)
            history = remember(Skip, policy, state, answers)
            arrivals = remember_arrivals(Skip, policy, state, answers)
            return _skip(policy, state.replace(declined={}, history=history, arrivals=arrivals), skip)
        state = state.replace(overdue=True)
    return _invite(policy, state)


def _close(policy: RunPolicy, state: RunState, answers: Answers, because: str) -> Moved:
    close = summarise_close(policy, state, answers, because)
    state = state.replace(
        phase=Phase.CLOSED,
        closed=close,
        overdue=False,
        declined={},
        history=remember(Close, policy, state, answers),
        arrivals=remember_arrivals(Close, policy, state, answers),
    )
    return state, (close,)


def _invite(policy: RunPolicy, state: RunState) -> Moved:
    there = tuple(w for w in ready_workers(policy, state) if w not in policy.leaving)
    chosen = policy.selection.invite(policy.workers, state, there) if there else ()
    if not chosen:
        return state, ()
    first = not (state.invited or state.held or state.faults)
    late = frozenset(worker for worker in policy.workers if worker not in state.parked)
    now = dict.fromkeys(chosen, state.round)
    state = state.replace(
        parked={worker: round for worker, round in state.parked.items() if worker not in now},
        invited={**state.invited, **now},
        last={**state.last, **now},
        asked={**state.asked, **dict.fromkeys(chosen, (state.round, state.at))},
        before={**state.before, **{worker: state.last.get(worker, NEVER) for worker in chosen}},
        given_up=late if first else state.given_up,
    )
    return state, tuple(Invite(worker, state.round) for worker in chosen)


def _notice_late(policy: RunPolicy, state: RunState, event: Event, refusal: Refusal) -> RunState:
    """A vector that is refused for being late shows that its worker is there, and how fast it is."""
    learns = policy.waiting is not None or policy.auto is not None
    if not learns or refusal not in LATE or not isinstance(event, Offer):
        return state
    # Without invitations, everybody was asked for the round that was the last to close when it opened.
    closed = state.round - (state.phase is not Phase.CLOSED), state.history.opened_at
    round, asked_at = state.asked.get(event.worker, (NEVER, None)) if policy.by_invitation else closed
    if round != event.round or asked_at is None:
        return state
    took, history = event.at - asked_at, state.history
    if policy.auto is not None:
        opened_at = closed[1] if closed[0] == round and closed[1] is not None else asked_at
        longest = event.at - min(opened_at, asked_at)
        state = state.replace(arrivals=notice_late(state.arrivals, event.worker, round, longest))
    if policy.waiting is None:
        return state
    deadline = policy.deadline_of(state)
    return state.replace(history=history.notice_late(policy.waiting, event.worker, round, took, deadline))


def _hold(state: RunState, worker: Worker, round: int, digest: bytes) -> RunState:
    """A vector has arrived."""
    start = state.at if state.opened_at is None else state.opened_at
    asked_at = state.asked.get(worker, (round, start))[1]
    return _uninvite(state, worker).replace(
        held={**state.held, worker: (round, digest)},
        took={**state.took, worker: state.at - asked_at},
        uploads=without(state.uploads, worker),
        declined=without(state.declined, worker),
    )


def _hold_all(policy: RunPolicy, state: RunState, digests: Mapping[Worker, bytes]) -> Moved:
    """These vectors have arrived, and no other can count in this round: it closes if they are enough."""
    for worker, digest in digests.items():
        state = _hold(state, worker, state.round, digest)
    answers = count_answers(policy, state)
    if len(state.faults) > policy.f or policy.shortage(answers.pushed, answers.faulty):
        return state, ()
    because = f"{describe(policy, state, answers)}; nobody else can take part any more"
    return _close(policy, state, answers, because)


def _ask(policy: RunPolicy, state: RunState, worker: Worker, round: int) -> Moved:
    """The worker waits; if it has the model of this round, its answer was lost, and it is given again."""
    if worker in policy.leaving and state.invited.get(worker) != state.round:
        return state, ()
    state = state.replace(
        parked={**state.parked, worker: round},
        given_up=state.given_up - {worker},
        absent=state.absent - {worker},
    )
    if worker in useful_uploads(policy, state):
        return state, ()  # it may be heard of before the end of an upload that is long dead
    if state.phase is Phase.OPEN and state.invited.get(worker) == state.round:
        if round <= state.round:
            return state.replace(parked=without(state.parked, worker)), (Invite(worker, state.round),)
        # It declines in time for others, so this was no participation.
        state = state.replace(last={**state.last, worker: state.before[worker]})
    return _uninvite(state, worker), ()


def _end_upload(policy: RunPolicy, state: RunState, worker: Worker) -> Moved:
    state = state.replace(uploads=without(state.uploads, worker))
    if worker in state.parked and worker in state.invited:
        return _ask(policy, state, worker, state.parked[worker])
    return state, ()


def _leave(policy: RunPolicy, state: RunState, worker: Worker) -> RunState:
    state = state.replace(parked=without(state.parked, worker))
    return state if worker in useful_uploads(policy, state) else _uninvite(state, worker)


def _withdraw(state: RunState, worker: Worker, reason: str) -> RunState:
    """Withdraw all vectors of this worker but that which is being aggregated.

    An open upload stays open until its end is reported, since its row may be written to until then; but
    with a digest that no push has, so that it cannot count.
    """
    upload = state.uploads.get(worker)
    return _uninvite(state, worker).replace(
        held=state.held if worker in state.taken else without(state.held, worker),
        parked=without(state.parked, worker),
        uploads=state.uploads if upload is None else {**state.uploads, worker: (upload[0], VOID)},
        absent=state.absent | {worker},
        declined=without(state.declined, worker),
        revoked={**state.revoked, worker: reason},
    )


def _record_fault(state: RunState, worker: Worker, reason: str) -> RunState:
    held, declined = without(state.held, worker), without(state.declined, worker)
    state = _uninvite(state, worker).replace(held=held, declined=declined)
    if state.phase is Phase.CLOSED:
        return state.replace(accused={**state.accused, worker: reason})
    return state.replace(faults={**state.faults, worker: reason})


def _give_up(policy: RunPolicy, state: RunState, because: str) -> Moved:
    close = state.closed
    assert close is not None, f"round {state.round} was not closed"
    shared: dict[str, Any] = {field.name: getattr(close, field.name) for field in fields(RollCall)}
    shared["because"] = because
    skip = Skip(**shared)
    return _skip(policy, state, skip)


def _skip(policy: RunPolicy, state: RunState, skip: Skip) -> Moved:
    state = state.replace(skips=state.skips + 1)
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
    round, tau, taken = state.round + 1, policy.selection.tau, state.taken
    oldest = 0 if tau is None else round - tau
    invited = {worker: model for worker, model in state.invited.items() if model >= oldest}
    held = {w: vector for w, vector in state.held.items() if w not in taken and vector[0] >= oldest}
    used = {w: vector for w, vector in state.held.items() if w not in held} if policy.by_invitation else {}
    following = state.replace(
        round=round,
        phase=Phase.OPEN,
        opened_at=state.at,
        overdue=False,
        deadline=None
        if policy.auto is None
        else policy.auto.deadline(state.arrivals, policy.deadline, state.skips),
        quorum_took=None,
        invited=invited,
        before={worker: state.before[worker] for worker in invited},
        held=held,
        # Who pushed it was told that it counts, and hears the same when the reply was lost.
        used={**state.used, **used},
        closed=None,
        faults=state.accused,
        accused={},
        revoked={worker: why for worker, why in state.revoked.items() if worker in state.absent},
    )
    if round == policy.rounds:
        return _finish(following, f"all {policy.rounds} rounds are done")
    after = policy.at(round)
    if after is policy:
        return following, (Open(round),)
    return with_members(following, policy, after), (effect_of(policy, after, round), Open(round))


def _finish(state: RunState, reason: str) -> Moved:
    return state.replace(phase=Phase.FINISHED, reason=reason), (Finish(reason),)


def _start(state: RunState) -> RunState:
    """The clock of the first round starts with the first worker that shows up."""
    return state if state.opened_at is not None else state.replace(opened_at=state.at)


def _uninvite(state: RunState, worker: Worker) -> RunState:
    if worker not in state.invited:
        return state
    return state.replace(invited=without(state.invited, worker), before=without(state.before, worker))


def without(mapping: Mapping[Worker, V], worker: Worker) -> dict[Worker, V]:
    return {key: value for key, value in mapping.items() if key != worker}

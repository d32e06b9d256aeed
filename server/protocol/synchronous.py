"""Synchronous rounds: the protocol of a run in which every worker pushes in every round, without any I/O.

Rule 1: everything that decides about a round lives in this file and in `verdict`, `rollcall` and `pace`.
Rule 2: this file knows no clock, no tensor, no thread and no wire. Time comes in with each event (`at`,
        seconds of one monotonic clock), and `wake_at` says when the next `Tick` is due.
Rule 3: an event that is refused changes nothing, but for what `pace` remembers: that a vector which came
        a little too late would have been in time if its round had waited.
Rule 4: every decision carries the sentence that explains it.

Theory of operation. A run is a sequence of rounds, and a round has two phases:

    OPEN    --Close-->  CLOSED (somebody aggregates)  --Committed or Skipped-->  the next round, or the end
    OPEN    --Skip-->   the next round, or the end

A worker answers a round in one of two ways. Either it pushes: `Offer` when its upload begins, `Push` when
the whole vector has arrived and is sound. The first complete vector counts; another one for the same round
is refused (`COUNTED`) and changes nothing, because a worker that was started again may well compute another
one. Or it proves itself faulty: `Fault`, for something that no honest program sends, whatever crashed or
was tried again. A worker that does neither is missing, or has declined: `Decline`. Neither proves anything,
so neither spends one of the f.

A round closes when nobody is waited for any more, once those who are late were waited for long enough
(`pace`), or at its deadline, and only if enough is there: the
quorum has answered, and the condition of the rule (`requires`) holds for the rows that came. A quorum
counts pushes and proven faults alike, because a rule that holds for q rows of which f are Byzantine also
holds for q - 1 of which f - 1 are. Workers that declined and workers that are absent (`Absent`: no process
of theirs is connected) are not waited for. Without enough the policy decides at the deadline: wait, skip
the round, or fail. `wait` skips as well where waiting cannot help: with more than f faults, or when those
who could still answer would not be enough.

A worker whose certificate was revoked is withdrawn (`Withdraw`): its vector leaves the open round, its
upload cannot count any more, and it is treated as absent until it comes back with another certificate. It
is not waited for in the round in which that happened. It proves nothing and spends none of the f. A round
that is being aggregated already is completed with its vector.

An upload outlives its round: it is open until `Push` or `Gone`, and its worker is BUSY until then. So
nobody writes to the memory of a round that is being aggregated, and a stalled upload delays its owner only.

The clock of round 0 starts with the first worker that shows up, since workers may be started long after
the server; the clock of every other round starts when it opens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from varangian.protos.refusals import Refusal
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
    Left,
    Offer,
    Open,
    Phase,
    Present,
    Push,
    Ready,
    Reject,
    RoundPolicy,
    RoundState,
    Seconds,
    Settled,
    Skip,
    Skipped,
    Stop,
    Tick,
    Withdraw,
    Worker,
)
from varangian.server.protocol.roll_call import (
    check_round,
    count_answers,
    has_enough,
    is_offered,
    is_withdrawn_upload,
    paced,
    span,
    summarise,
    withdraw,
    without,
)
from varangian.server.protocol.synchronous_quorum import decided, in_vain

__all__ = ["Decision", "Refusal", "RoundMachine", "RoundPolicy", "Verdict"]

Moved: TypeAlias = tuple[RoundState, tuple[Effect, ...]]


class RoundMachine:
    """The protocol of one run. `handle` is the only way to change it."""

    invites = False

    def __init__(self, policy: RoundPolicy) -> None:
        self.policy = policy
        self.state = RoundState()

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Move, and say what follows. The answer to a worker comes first."""
        self.state, effects = moved(self.policy, self.state, event)
        return effects

    @property
    def wake_at(self) -> Seconds | None:
        """When the next `Tick` is due; None when nothing depends on time."""
        if self.state.phase is not Phase.OPEN or self.state.overdue or self.state.opened_at is None:
            return None
        return self.state.opened_at + span(self.policy, self.state)

    def decision(self, at: Seconds) -> Decision:
        """What the open round is waiting for, as a sentence."""
        return decided(self.policy, self.state, at)

    def standing(self, worker: Worker, round: int) -> Refusal | None:
        """Why a vector of this worker would not count in this round any more."""
        if self.state.phase is Phase.FINISHED:
            return Refusal.FINISHED
        if is_withdrawn_upload(self.state, worker):
            return Refusal.UNOFFERED
        faulty = Refusal.FAULTY if worker in self.state.faults else None
        return check_round(self.state, round, Phase.OPEN) or faulty


def moved(policy: RoundPolicy, state: RoundState, event: Event) -> Moved:
    """The whole protocol: a pure function of state and event."""
    refusal = refused(policy, state, event)
    if refusal is Refusal.DUPLICATE and isinstance(event, Offer):
        return state, (Duplicate(event.worker, event.round),)
    if refusal is not None:
        return _noticed(policy, state, event, refusal), (Reject(refusal, state.round),)
    match event:
        case Offer(worker, round, digest):
            uploads, absent = {**state.uploads, worker: (round, digest)}, state.absent - {worker}
            revoked = without(state.revoked, worker)
            state = replace(_started(state, event.at), uploads=uploads, absent=absent, revoked=revoked)
            return state, (Accept(worker, round),)
        case Push():
            return _pushed(policy, state, event)
        case Settled():
            return _all_pushed(policy, state, event)
        case Fault(worker, _, reason):
            return _settled(policy, _faulted(_started(state, event.at), worker, reason), event.at)
        case Decline(worker, _, reason):
            declined, revoked = {worker: reason, **state.declined}, without(state.revoked, worker)
            state = replace(_started(state, event.at), declined=declined, revoked=revoked)
            return _settled(policy, state, event.at)
        case Absent(worker):
            return _settled(policy, replace(state, absent=state.absent | {worker}), event.at)
        case Present(worker):
            return replace(state, absent=state.absent - {worker}), ()
        case Withdraw(worker, reason):
            settled, effects = _settled(policy, _withdrawn(state, worker, reason), event.at)
            return settled, (Forget(worker), *effects)
            pace = state.pace.forgiving(worker)
            return replace(state, absent=state.absent - {worker}, pace=pace), ()
        case Gone(worker):
            state = replace(state, uploads=without(state.uploads, worker))
            return _settled(policy, state, event.at)
        case Ready() | Left():  # everybody may pull at any time
            return state, ()
        case Tick():
            return _settled(policy, state, event.at)
        case Committed():
            return _opened(policy, replace(state, skips=0), event.at)
        case Skipped():
            return _skipped(policy, state, event.at, event.reason)
        case Stop(reason):
            return _finished(state, reason)


def refused(policy: RoundPolicy, state: RoundState, event: Event) -> Refusal | None:
    """Why this is not the moment for an event, or not the one to bring it; None when it is."""
    match event:
        case Tick() | Ready() | Left():
            return None
        case Absent(worker) | Present(worker) | Withdraw(worker):
            return None if worker in policy.workers else Refusal.UNKNOWN_WORKER
        case Gone(worker, round):
            upload = state.uploads.get(worker)
            return None if upload is not None and upload[0] == round else Refusal.UNOFFERED
        case _ if state.phase is Phase.FINISHED:
            return Refusal.FINISHED
        case Stop():
            return None
        case Settled(round, digests):
            sound = not state.faults.keys() & digests.keys()
            known = sound and all(is_offered(state, w, round, digest) for w, digest in digests.items())
            return check_round(state, round, Phase.OPEN) or (None if known else Refusal.UNOFFERED)
        case Committed() | Skipped():
            return check_round(state, event.round, Phase.CLOSED)
        case Offer() | Push() | Fault() | Decline():
            return _refused_worker(policy, state, event)


def _refused_worker(
    policy: RoundPolicy, state: RoundState, event: Offer | Push | Fault | Decline
) -> Refusal | None:
    if event.worker not in policy.workers:
        return Refusal.UNKNOWN_WORKER
    counted = state.pushed.get(event.worker) if event.round == state.round else None
    if isinstance(event, Offer) and counted is not None:
        return {counted: Refusal.DUPLICATE, b"": Refusal.REPEATED}.get(event.digest, Refusal.COUNTED)
    if reason := check_round(state, event.round, Phase.OPEN):
        return reason
    if event.worker in state.faults:
        return Refusal.FAULTY
    upload = state.uploads.get(event.worker)
    match event:
        case Offer() if upload is not None:
            return Refusal.BUSY
        case Decline() if counted is not None:
            return Refusal.COUNTED
        case Push() if not is_offered(state, event.worker, event.round, event.digest):
            return Refusal.UNOFFERED
        case Fault() if event.worker in state.revoked:
            return Refusal.UNOFFERED  # what it sent was withdrawn, and proves nothing any more
        case _:
            return None


def _settled(policy: RoundPolicy, state: RoundState, at: Seconds) -> Moved:
    """Close the round, or give it up, if it is time to."""
    if state.phase is not Phase.OPEN:
        return state, ()
    timed = policy.waiting is not None and state.opened_at is not None and state.quorum_took is None
    if timed and has_enough(policy, state):
        state = replace(state, quorum_took=at - (state.opened_at or 0.0))
    verdict, because = decided(policy, state, at)
    if verdict is Verdict.CLOSE:
        return _closed(policy, state, at, because)
    if verdict is Verdict.WAIT:
        return state, ()
    if policy.shortfall == "wait" and not in_vain(policy, state):
        return replace(state, overdue=True), ()
    return _skipped(policy, state, at, because)


def _closed(policy: RoundPolicy, state: RoundState, at: Seconds, because: str) -> Moved:
    closed = replace(state, phase=Phase.CLOSED, closed_at=at, overdue=False)
    close = summarise(Close, policy, closed, at, because)
    pace = paced(policy, closed, at)
    return replace(closed, not_waited_for=close.not_waited_for, pace=pace), (close,)


def _noticed(policy: RoundPolicy, state: RoundState, event: Event, refusal: Refusal) -> RoundState:
    """A vector for the round that has just closed shows that its worker is there, and how fast it is."""
    if policy.waiting is None or refusal is not Refusal.STALE or not isinstance(event, Offer):
        return state
    just, opened_at = state.round - (state.phase is not Phase.CLOSED), state.pace.opened_at
    if event.round != just or opened_at is None:
        return state
    pace = state.pace.noticed(policy.waiting, event.worker, event.at - opened_at, policy.deadline)
    return replace(state, pace=pace)


def _skipped(policy: RoundPolicy, state: RoundState, at: Seconds, because: str) -> Moved:
    skip = summarise(Skip, policy, state, at, because)
    pace = paced(policy, state, at) if state.phase is Phase.OPEN else state.pace
    state = replace(state, skips=state.skips + 1, pace=pace)
    if policy.shortfall == "fail":
        state, effects = _finished(state, because)
    elif state.skips == policy.max_skips:
        reason = f"{state.skips} rounds in a row had no update; the last, {because}"
        state, effects = _finished(state, reason)
    else:
        state, effects = _opened(policy, state, at)
    return state, (skip, *effects)


def _opened(policy: RoundPolicy, state: RoundState, at: Seconds) -> Moved:
    round = state.round + 1
    following = RoundState(
        round,
        opened_at=at,
        skips=state.skips,
        pace=state.pace,
        uploads=state.uploads,
        absent=state.absent,
        revoked={worker: why for worker, why in state.revoked.items() if worker in state.absent},
    )
    if round == policy.rounds:
        return _finished(following, f"all {policy.rounds} rounds are done")
    return following, (Open(round),)


def _finished(state: RoundState, reason: str) -> Moved:
    return replace(state, phase=Phase.FINISHED, reason=reason), (Finish(reason),)


def _started(state: RoundState, at: Seconds) -> RoundState:
    return state if state.opened_at is not None else replace(state, opened_at=at)


def _pushed(policy: RoundPolicy, state: RoundState, push: Push) -> Moved:
    counted = replace(
        state,
        uploads=without(state.uploads, push.worker),
        pushed={**state.pushed, push.worker: push.digest},
        declined=without(state.declined, push.worker),
    )
    settled, effects = _settled(policy, counted, push.at)
    return settled, (Accept(push.worker, push.round), *effects)


def _all_pushed(policy: RoundPolicy, state: RoundState, event: Settled) -> Moved:
    uploads = {w: upload for w, upload in state.uploads.items() if w not in event.digests}
    pushed = {**state.pushed, **event.digests}
    counted = replace(state, uploads=uploads, pushed=pushed)
    if len(state.faults) > policy.f or policy.shortage(pushed, state.faults):
        return _settled(policy, counted, event.at)
    because = f"{count_answers(policy, counted)}; nobody else can take part any more"
    return _closed(policy, counted, event.at, because)


def _withdrawn(state: RoundState, worker: Worker, reason: str) -> RoundState:
    # A round that is closed has counted its vector: an aggregate on its way is not taken back.
    pushed = without(state.pushed, worker) if state.phase is Phase.OPEN else state.pushed
    return replace(state, pushed=pushed, **withdraw(state, worker, reason))


def _faulted(state: RoundState, worker: Worker, reason: str) -> RoundState:
    faults = {**state.faults, worker: reason}
    pushed, declined = without(state.pushed, worker), without(state.declined, worker)
    return replace(state, pushed=pushed, declined=declined, faults=faults)

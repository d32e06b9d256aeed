"""Roll call of a round, for both machines: who answered, who is missing, and what does not fit the round.

As `round` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypedDict, TypeVar

from varangian.protos.refusals import Refusal
from varangian.server.protocol.adaptive_waiting import WaitingHistory, is_patient
from varangian.server.protocol.decisions import State
from varangian.server.protocol.events import (
    Phase,
    RollCall,
    RoundPolicy,
    RoundState,
    Seconds,
    Worker,
)

V = TypeVar("V")
R = TypeVar("R", bound=RollCall)

VOID: Final = b"void"
"""In the place of the digest of an upload that was withdrawn. No digest is that short."""


class Withdrawn(TypedDict):
    """What of the state of a machine changes when a worker is withdrawn."""

    uploads: Mapping[Worker, tuple[int, bytes]]
    absent: frozenset[Worker]
    declined: Mapping[Worker, str]
    revoked: Mapping[Worker, str]


def count_answers(policy: RoundPolicy, state: RoundState) -> str:
    n, pushes, faults = len(policy.workers), len(state.pushed), len(state.faults)
    answered = f"{pushes + faults} of {n} workers answered ({pushes} pushed, {faults} faulty)"
    return f"round {state.round}: {answered}{set_aside(state)}"


def set_aside(state: State) -> str:
    """How many declined, and how many were revoked, with the first reason of each; nothing if nobody."""
    kinds = {"declined": state.declined, "revoked": state.revoked}
    return "".join(f", {len(who)} {kind} ({reasons(who)})" for kind, who in kinds.items() if who)


def reasons(declined: Mapping[Worker, str]) -> str:
    """The first worker, by name, and its reason."""
    worker = min(declined)
    return f"{worker}: {declined[worker].rstrip('.')}"


def summarise(kind: type[R], policy: RoundPolicy, state: RoundState, at: Seconds, because: str) -> R:
    ended_at = at if state.closed_at is None else state.closed_at
    return kind(
        round=state.round,
        workers=tuple(sorted(state.pushed)),
        faults={worker: state.faults[worker] for worker in sorted(state.faults)},
        missing=missing(policy, state, at),
        waited=0.0 if state.opened_at is None else ended_at - state.opened_at,
        because=because,
        declined=dict(sorted(state.declined.items())),
        revoked=tuple(sorted(state.revoked)),
        not_waited_for=unwaited(policy, state, missing(policy, state, at)),
    )


def withdraw(state: State, worker: Worker, reason: str) -> Withdrawn:
    """The part of a withdrawal that both machines share, as changes of the state.

    An open upload stays open until its end is reported, since its row may be written to until then; but
    with a digest that no push has, so that it cannot count.
    """
    upload = state.uploads.get(worker)
    uploads = state.uploads if upload is None else {**state.uploads, worker: (upload[0], VOID)}
    return Withdrawn(
        uploads=uploads,
        absent=state.absent | {worker},
        declined=without(state.declined, worker),
        revoked={**state.revoked, worker: reason},
    )


def is_withdrawn_upload(state: State, worker: Worker) -> bool:
    """Whether an upload of this worker is open that was withdrawn."""
    return state.uploads.get(worker, (0, b""))[1] == VOID


def unanswered(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    """Who has neither pushed nor declined nor proved faulty."""
    answered = state.pushed.keys() | state.faults.keys() | state.declined.keys()
    return tuple(w for w in policy.workers if w not in answered)


def awaited(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    """Who has not answered and is waited for."""
    there = connected(policy, state)
    if policy.waiting is None or is_patient(
        state.pace, state.round, state.opened_at, policy.deadline, there
    ):
        return there
    aside = state.absent | state.declined.keys() | state.revoked.keys()
    often = {w for w in state.pace.missed if state.pace.passed_over(policy.waiting, w) and w not in aside}
    few = len(often) <= policy.spare(len(policy.workers), policy.quorum)
    return tuple(w for w in there if w not in often) if few else there


def passed_over(policy: RoundPolicy, state: RoundState) -> frozenset[Worker]:
    """Who could still answer and is not waited for, having missed too many rounds in a row."""
    if not state.pace.missed:
        return frozenset()
    return frozenset(connected(policy, state)) - frozenset(awaited(policy, state))


def connected(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    """Who has not answered and is there, or is uploading."""
    uploading = {
        w
        for w, (round, _) in state.uploads.items()
        if round == state.round and not is_withdrawn_upload(state, w)
    }
    unheard = (w for w in policy.workers if w not in state.pushed and w not in state.faults)
    aside = state.absent | state.declined.keys() | state.revoked.keys()
    return tuple(w for w in unheard if w in uploading or w not in aside)


def missing(policy: RoundPolicy, state: RoundState, at: Seconds) -> tuple[Worker, ...]:
    """Who did not answer in time. In a round that is given up before its deadline, only who is absent."""
    early = state.closed_at is None and not is_late(policy, state, at)
    return tuple(w for w in silent(policy, state) if not early or w in state.absent)


def silent(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    """Who has not answered, and whose vector would count."""
    return tuple(w for w in unanswered(policy, state) if w not in state.revoked)


def unwaited(policy: RoundPolicy, state: RoundState, missing: Sequence[Worker]) -> dict[Worker, str]:
    """Of those who are missing: who was not waited for, and why."""
    if state.not_waited_for is not None:
        return dict(state.not_waited_for)
    expected = set(awaited(policy, state))
    return {w: _reason(state, w) for w in missing if w not in expected}


def _reason(state: RoundState, worker: Worker) -> str:
    return "absent" if worker in state.absent else missed(state.pace.missed.get(worker, 0))


def missed(count: int) -> str:
    return f"missed the last {count} rounds"


def waited(took: Seconds, span: Seconds) -> str:
    """Why a round is over before its deadline, although somebody was waited for."""
    return f"enough had answered after {took:.3g} s, and the others had {span:.3g} s from its start"


def has_enough(policy: RoundPolicy, state: RoundState) -> bool:
    """Whether so many have answered that the adaptive wait may begin, and the round could be closed."""
    answers = len(state.pushed) + len(state.faults)
    n = len(policy.workers)
    return answers >= n - policy.spare(n, policy.quorum) and not policy.shortage(state.pushed, state.faults)


def span(policy: RoundPolicy, state: RoundState) -> Seconds:
    """How long the open round waits for those who are late, as far as is known by now."""
    if policy.waiting is None or state.quorum_took is None:
        return policy.deadline
    there = connected(policy, state)
    if is_patient(state.pace, state.round, state.opened_at, policy.deadline, there):
        return policy.deadline
    return state.pace.span(policy.waiting, state.quorum_took, policy.deadline)


def is_over(policy: RoundPolicy, state: RoundState, at: Seconds) -> bool:
    """Whether those who are late have been waited for long enough, and the others are enough."""
    if state.opened_at is None or state.quorum_took is None:
        return False
    return at >= state.opened_at + span(policy, state) and has_enough(policy, state)


def paced(policy: RoundPolicy, state: RoundState, at: Seconds) -> WaitingHistory:
    """What is remembered once the open or closed round is over."""
    if policy.waiting is None:
        return state.pace
    return state.pace.over(
        round=state.round,
        opened_at=state.opened_at,
        at=at if state.closed_at is None else state.closed_at,
        took=state.quorum_took,
        deadline=policy.deadline,
        answered=state.pushed.keys() | state.faults.keys() | state.declined.keys(),
        missing=set(missing(policy, state, at)) - state.absent,
    )


def is_late(policy: RoundPolicy, state: RoundState, at: Seconds) -> bool:
    """Whether the deadline of the round has passed."""
    return state.opened_at is not None and at >= state.opened_at + policy.deadline


def without(mapping: Mapping[Worker, V], worker: Worker) -> dict[Worker, V]:
    return {key: value for key, value in mapping.items() if key != worker}


def list_names(workers: Sequence[Worker], most: int = 5) -> str:
    """The first few names; a sentence must stay readable with a thousand workers."""
    more = f" and {len(workers) - most} more" if len(workers) > most else ""
    return ", ".join(workers[:most]) + more


def is_offered(state: State, worker: Worker, round: int, digest: bytes) -> bool:
    """Whether such an upload of the worker is open; the digest may have come at its end."""
    open = state.uploads.get(worker)
    return open in ((round, digest), (round, b"")) and not is_withdrawn_upload(state, worker)


def check_round(state: State, round: int, phase: Phase) -> Refusal | None:
    """Why something about this round does not fit now, if it belongs to this phase of it."""
    if round > state.round:
        return Refusal.FUTURE
    if round < state.round:
        return Refusal.STALE
    if state.phase is phase:
        return None
    return Refusal.STALE if phase is Phase.OPEN else Refusal.NOT_CLOSED

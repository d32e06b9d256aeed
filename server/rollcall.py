"""Roll call of a round, for both machines: who answered, who is missing, and what does not fit the round.

As `round` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from varangian.server.events import Phase, Refusal, RollCall, RoundPolicy, RoundState, Seconds, Worker
from varangian.server.machine import State

V = TypeVar("V")
R = TypeVar("R", bound=RollCall)


def tallied(policy: RoundPolicy, state: RoundState) -> str:
    n, pushes, faults = len(policy.workers), len(state.pushed), len(state.faults)
    answered = f"{pushes + faults} of {n} workers answered ({pushes} pushed, {faults} faulty)"
    declined = f", {len(state.declined)} declined ({reasons(state.declined)})" if state.declined else ""
    return f"round {state.round}: {answered}{declined}"


def reasons(declined: Mapping[Worker, str]) -> str:
    """Who declined first, by name, and why."""
    worker = min(declined)
    return f"{worker}: {declined[worker].rstrip('.')}"


def ended(kind: type[R], policy: RoundPolicy, state: RoundState, at: Seconds, because: str) -> R:
    ended_at = at if state.closed_at is None else state.closed_at
    return kind(
        round=state.round,
        workers=tuple(sorted(state.pushed)),
        faults={worker: state.faults[worker] for worker in sorted(state.faults)},
        missing=missing(policy, state, at),
        waited=0.0 if state.opened_at is None else ended_at - state.opened_at,
        because=because,
        declined=dict(sorted(state.declined.items())),
    )


def unanswered(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    """Who has neither pushed nor declined nor proved faulty."""
    answered = state.pushed.keys() | state.faults.keys() | state.declined.keys()
    return tuple(w for w in policy.workers if w not in answered)


def awaited(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    """Who has not answered and is there, or is uploading."""
    uploading = {w for w, (round, _) in state.uploads.items() if round == state.round}
    silent = (w for w in policy.workers if w not in state.pushed and w not in state.faults)
    return tuple(w for w in silent if w in uploading or w not in state.absent | state.declined.keys())


def missing(policy: RoundPolicy, state: RoundState, at: Seconds) -> tuple[Worker, ...]:
    """Who did not answer in time. In a round that is given up before its deadline, only who is absent."""
    early = state.closed_at is None and not is_late(policy, state, at)
    return tuple(w for w in unanswered(policy, state) if not early or w in state.absent)


def is_late(policy: RoundPolicy, state: RoundState, at: Seconds) -> bool:
    """Whether the deadline of the round has passed."""
    return state.opened_at is not None and at >= state.opened_at + policy.deadline


def without(mapping: Mapping[Worker, V], worker: Worker) -> dict[Worker, V]:
    return {key: value for key, value in mapping.items() if key != worker}


def listed(workers: Sequence[Worker], most: int = 5) -> str:
    """The first few names; a sentence must stay readable with a thousand workers."""
    more = f" and {len(workers) - most} more" if len(workers) > most else ""
    return ", ".join(workers[:most]) + more


def offered(state: State, worker: Worker, round: int, digest: bytes) -> bool:
    """Whether such an upload of the worker is open; the digest may have come at its end."""
    return state.uploads.get(worker) in ((round, digest), (round, b""))


def misdated(state: State, round: int, phase: Phase) -> Refusal | None:
    """Why something about this round does not fit now, if it belongs to this phase of it."""
    if round > state.round:
        return Refusal.FUTURE
    if round < state.round:
        return Refusal.STALE
    if state.phase is phase:
        return None
    return Refusal.STALE if phase is Phase.OPEN else Refusal.NOT_CLOSED

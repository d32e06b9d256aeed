"""What is said of a round: who answered, who did not, how many; for the machine's sentences and effects.

As `round` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from varangian.server.events import RollCall, RoundPolicy, RoundState, Seconds, Worker

V = TypeVar("V")
R = TypeVar("R", bound=RollCall)


def tallied(policy: RoundPolicy, state: RoundState) -> str:
    n, pushes, faults = len(policy.workers), len(state.pushed), len(state.faults)
    answered = f"{pushes + faults} of {n} workers answered ({pushes} pushed, {faults} faulty)"
    return f"round {state.round}: {answered}"


def ended(kind: type[R], policy: RoundPolicy, state: RoundState, at: Seconds, because: str) -> R:
    ended_at = at if state.closed_at is None else state.closed_at
    return kind(
        round=state.round,
        workers=tuple(sorted(state.pushed)),
        faults={worker: state.faults[worker] for worker in sorted(state.faults)},
        missing=missing(policy, state),
        waited=0.0 if state.opened_at is None else ended_at - state.opened_at,
        because=because,
    )


def missing(policy: RoundPolicy, state: RoundState) -> tuple[Worker, ...]:
    return tuple(w for w in policy.workers if w not in state.pushed and w not in state.faults)


def without(mapping: Mapping[Worker, V], worker: Worker) -> dict[Worker, V]:
    return {key: value for key, value in mapping.items() if key != worker}


def listed(workers: Sequence[Worker], most: int = 5) -> str:
    """The first few names; a sentence must stay readable with a thousand workers."""
    more = f" and {len(workers) - most} more" if len(workers) > most else ""
    return ", ".join(workers[:most]) + more

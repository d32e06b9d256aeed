"""Admission of events: which are refused, and why. An event that is refused changes nothing."""

from __future__ import annotations

from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import (
    Absent,
    Committed,
    Decline,
    Drain,
    Event,
    Fault,
    Gone,
    Left,
    Offer,
    Present,
    Push,
    Ready,
    Settled,
    Skipped,
    Stop,
    Tick,
    Withdraw,
    Worker,
)
from varangian.server.protocol.quorum import is_young_enough
from varangian.server.protocol.state import Phase, RunPolicy, RunState


def refusal_of(policy: RunPolicy, state: RunState, event: Event) -> Refusal | None:
    """Why this is not the moment for an event, or not the one to bring it; None when it is."""
    match event:
        case Offer() | Push() | Fault() | Decline():
            finished = state.phase is Phase.FINISHED
            return Refusal.FINISHED if finished else _refusal_of_worker(policy, state, event)
        case Tick() | Left():
            return None
        case Absent(worker) | Present(worker) | Withdraw(worker) | Drain(worker):
            return None if worker in policy.workers else Refusal.UNKNOWN_WORKER
        case Gone(worker, round):
            upload = state.uploads.get(worker)
            return None if upload is not None and upload[0] == round else Refusal.UNOFFERED
        case _ if state.phase is Phase.FINISHED:
            return Refusal.FINISHED
        case Stop():
            return None
        case Ready(worker):
            return None if worker in policy.workers else Refusal.UNKNOWN_WORKER
        case Committed() | Skipped():
            return _check_closed(state, event.round)
        case Settled():
            return _refusal_of_settled(policy, state, event)


def refusal_of_vector(policy: RunPolicy, state: RunState, worker: Worker, round: int) -> Refusal | None:
    """Why a vector of this worker, made for the model of this round, would not count any more."""
    if state.phase is Phase.FINISHED:
        return Refusal.FINISHED
    if worker not in policy.workers:
        return Refusal.UNKNOWN_WORKER
    if state.has_withdrawn_upload(worker):
        return Refusal.UNOFFERED
    if misfit := _misfit(policy, state, worker, round):
        return misfit
    counts = not policy.by_invitation or is_held(state, worker, round)
    return None if counts or state.invited.get(worker) == round else Refusal.NOT_INVITED


def is_held(state: RunState, worker: Worker, round: int) -> bool:
    """Whether a vector of the worker for this model waits to be used, and could still be withdrawn."""
    vector = state.held.get(worker)
    return vector is not None and vector[0] == round and worker not in state.taken


def _refusal_of_worker(
    policy: RunPolicy, state: RunState, event: Offer | Push | Fault | Decline
) -> Refusal | None:
    worker, round = event.worker, event.round
    if worker not in policy.workers:
        return Refusal.UNKNOWN_WORKER
    if isinstance(event, Offer) and (repeated := _answer_repeated(policy, state, event)):
        return repeated
    if misfit := _misfit(policy, state, worker, round):
        return misfit
    counts = is_held(state, worker, round)
    match event:
        case Fault() if counts:
            return None
        case Offer() if worker in state.uploads:
            return Refusal.BUSY
        case Decline() if counts:
            return Refusal.COUNTED
        case Push() if not _is_offered(state, worker, round, event.digest):
            return Refusal.UNOFFERED
        case _ if policy.by_invitation:
            return None if state.invited.get(worker) == round else Refusal.NOT_INVITED
        case Fault() if worker in state.revoked:
            return Refusal.UNOFFERED  # what it sent was withdrawn, and proves nothing any more
        case _:
            return None


def _refusal_of_settled(policy: RunPolicy, state: RunState, event: Settled) -> Refusal | None:
    if policy.by_invitation:  # columns of vectors of several rounds cannot be aggregated as they come
        return Refusal.UNOFFERED
    if event.round > state.round:
        return Refusal.FUTURE
    if event.round < state.round or state.phase is not Phase.OPEN:
        return Refusal.STALE
    offered = (_is_offered(state, w, event.round, digest) for w, digest in event.digests.items())
    return None if all(offered) and not state.faults.keys() & event.digests.keys() else Refusal.UNOFFERED


def _answer_repeated(policy: RunPolicy, state: RunState, offer: Offer) -> Refusal | None:
    """The answer to a repeated offer, for the round of a vector that counts or did; None for others."""
    if offer.worker not in state.held and offer.worker not in state.used:
        return None
    if _misfit(policy, state, offer.worker, offer.round) is Refusal.FAULTY:
        return None
    for round, digest in (v for of in (state.held, state.used) if (v := of.get(offer.worker))):
        if round == offer.round:
            known = {digest: Refusal.DUPLICATE, b"": Refusal.REPEATED}
            return known.get(offer.digest, Refusal.COUNTED)
    return None


def _misfit(policy: RunPolicy, state: RunState, worker: Worker, round: int) -> Refusal | None:
    """Why nothing that this worker made for the model of this round fits now."""
    if round > state.round:
        return Refusal.FUTURE
    if not is_young_enough(policy, state, round):
        return Refusal.TOO_OLD if policy.by_invitation else Refusal.STALE
    return Refusal.FAULTY if worker in state.faults or worker in state.accused else None


def _is_offered(state: RunState, worker: Worker, round: int, digest: bytes) -> bool:
    """Whether such an upload of the worker is open; the digest may have come at its end."""
    upload = state.uploads.get(worker)
    return upload in ((round, digest), (round, b"")) and not state.has_withdrawn_upload(worker)


def _check_closed(state: RunState, round: int) -> Refusal | None:
    """Why something about the round that is being aggregated does not fit now."""
    if round != state.round:
        return Refusal.FUTURE if round > state.round else Refusal.STALE
    return None if state.phase is Phase.CLOSED else Refusal.NOT_CLOSED

"""Membership: the workers of a run change between two rounds, by pure functions of policy and state.

A change that was accepted is the policy that follows (`RunPolicy.following`). It takes effect when the next
round opens: then nothing of the round before is open any more, and nothing of the new one counts yet.
Leaving proves nothing, so it spends none of the f.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from varangian.server.protocol.adaptive_waiting import WaitingHistory
from varangian.server.protocol.deadlines import Arrivals
from varangian.server.protocol.events import Members, Worker
from varangian.server.protocol.state import RunPolicy, RunState

V = TypeVar("V")


def effect_of(before: RunPolicy, after: RunPolicy, round: int) -> Members:
    """The change from one policy to the next, as an effect."""
    return Members(
        round=round,
        admitted=tuple(w for w in after.workers if w not in before.workers),
        gone=tuple(w for w in before.workers if w not in after.workers),
        workers=after.workers,
        quorum=after.quorum,
        f=after.f,
    )


def with_members(state: RunState, before: RunPolicy, after: RunPolicy) -> RunState:
    """The state without workers that are gone; those that were admitted are absent until they connect."""
    stay = {*after.workers}
    return state.replace(
        asked=_of(stay, state.asked),
        took=_of(stay, state.took),
        parked=_of(stay, state.parked),
        invited=_of(stay, state.invited),
        before=_of(stay, state.before),
        uploads=_of(stay, state.uploads),
        held=_of(stay, state.held),
        used=_of(stay, state.used),
        faults=_of(stay, state.faults),
        accused=_of(stay, state.accused),
        declined=_of(stay, state.declined),
        revoked=_of(stay, state.revoked),
        last=_of(stay, state.last),
        absent=(state.absent & stay) | (stay - {*before.workers}),
        given_up=state.given_up & stay,
        history=_history_of(stay, state.history),
        arrivals=_arrivals_of(stay, state.arrivals),
    )


def drained(policy: RunPolicy, state: RunState, worker: Worker) -> RunState:
    """The state once a worker is to leave: it is invited no more, and waited for only if it was.

    Without invitations it may have the model of the open round.
    """
    asked = worker in state.invited or worker in state.held or worker in state.uploads
    answers = asked or not policy.by_invitation
    parked = {name: round for name, round in state.parked.items() if name != worker}
    return state.replace(parked=parked, absent=state.absent if answers else state.absent | {worker})


def _of(stay: Collection[Worker], values: Mapping[Worker, V]) -> dict[Worker, V]:
    return {worker: value for worker, value in values.items() if worker in stay}


def _history_of(stay: Collection[Worker], history: WaitingHistory) -> WaitingHistory:
    return replace(history, missed=_of(stay, history.missed), credit=_of(stay, history.credit))


def _arrivals_of(stay: Collection[Worker], arrivals: Arrivals) -> Arrivals:
    return tuple(replace(of, seconds=_of(stay, of.seconds), late=_of(stay, of.late)) for of in arrivals)

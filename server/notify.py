"""NOTIFY-ACK: vectors of workers reach the aggregator whole, in order and exactly once, without a barrier.

The protocol of ASAP ("ASAP: Asynchronous Approximate Data-Parallel Computation", Kadav and Kruus, 2016) for
a server in place of a reduce at every worker, in its strong form: ACK after the reduce, not on receipt. The
rules of the round machine hold: no clock, no tensor, no thread, no wire; a refused event changes nothing.

Theory of operation. Every worker has one buffer, and numbers its pushes one by one:

    free  --Write/Go-->  written  --Notify/Hold-->  held  --Reduce-->  read  --Consumed/Ack-->  free
                         written  --Torn, Dead-->   free

A buffer is written by one upload at a time and only while it is free, and read only while it is held: so
what is reduced is never torn, and never a mixture of two versions. Until the ACK there is no `Go` for
another push: a worker has at most one that is not acknowledged, and the server one vector of each.

Whatever is lost on the way is said again, with the same number and digest. `Write` of what is held answers
`Hold`, of what was used last `Ack`: neither counts twice. A worker that has forgotten its number is told
which is expected. One that sends another vector under a number that is taken may have been restarted, which
is no proof of anything; the first vector stays, and its `Ack` says by its digest which it was.

A round reduces over its members (one neighbourhood of a graph after the other, say) as soon as all of them
are held: nobody waits for those who are not members, and a fast worker may be ahead by the one vector that
waits in its buffer. Members that are dead are not waited for while a quorum is held; at the deadline nobody
is, and below the quorum the round is passed over. So every round ends, whoever dies at whatever moment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from varangian.server.events import Seconds, Tick, Worker
from varangian.server.notices import (
    Ack,
    Consumed,
    Dead,
    Denial,
    Deny,
    Edge,
    Effect,
    Event,
    Go,
    Hold,
    Notify,
    NotifyPolicy,
    NotifyState,
    Pass,
    Reduce,
    Torn,
    Write,
)

__all__ = ["NotifyMachine", "moved"]

Moved: TypeAlias = tuple[NotifyState, tuple[Effect, ...]]


class NotifyMachine:
    """The pushes of one run. `handle` is the only way to change it."""

    def __init__(self, policy: NotifyPolicy) -> None:
        self.policy = policy
        self.state = NotifyState()

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Move, and say what follows. The answer to a worker comes first."""
        self.state, effects = moved(self.policy, self.state, event)
        return effects

    @property
    def wake_at(self) -> Seconds | None:
        """When the next `Tick` is due; None when nothing depends on time."""
        if self.state.reducing or self.state.opened_at is None:
            return None
        return self.state.opened_at + self.policy.deadline


def moved(policy: NotifyPolicy, state: NotifyState, event: Event) -> Moved:
    """The whole protocol: a pure function of state and event."""
    match event:
        case Write() | Notify():
            return _pushed(policy, state, event)
        case Torn(worker) | Dead(worker) if worker not in state.edges:
            return state, ()
        case Torn(worker):
            return _with(state, worker, upload=None), ()
        case Dead(worker, at):
            return _settled(policy, _with(state, worker, upload=None, dead=True), at)
        case Consumed(round, at):
            assert state.reducing, f"nothing was being reduced in round {state.round}"
            assert round == state.round, f"round {round} was consumed in round {state.round}"
            return _consumed(policy, state, at)
        case Tick(at):
            return _settled(policy, state, at)


def denied(edge: Edge, event: Write | Notify) -> Denial | None:
    """Why this is not the moment for a push; None when it is, or when it was one before."""
    push = (event.seq, event.digest)
    if push in (edge.held, edge.used):
        return None
    if isinstance(event, Notify):
        return None if push == edge.upload else Denial.UNWRITTEN
    if edge.held is not None and event.seq >= edge.held[0]:
        return Denial.EQUIVOCATION if event.seq == edge.held[0] else Denial.UNACKNOWLEDGED
    if event.seq < edge.expected:
        return Denial.OLD
    if edge.upload is not None:
        return Denial.BUSY
    return Denial.GAP if event.seq > edge.expected else None


def _pushed(policy: NotifyPolicy, state: NotifyState, event: Write | Notify) -> Moved:
    worker, seq, push = event.worker, event.seq, (event.seq, event.digest)
    if worker not in policy.workers:
        return state, (Deny(worker, Denial.UNKNOWN_WORKER, 0),)
    edge = state.edges.get(worker, Edge())
    if (code := denied(edge, event)) is not None:
        return state, (Deny(worker, code, edge.expected),)
    state = _with(state, worker, dead=False)
    state = state if state.opened_at is not None else replace(state, opened_at=event.at)
    if push == edge.held:
        return state, (Hold(worker, seq),)
    if push == edge.used:
        return state, (Ack(worker, *push),)
    if isinstance(event, Write):
        return _with(state, worker, upload=push), (Go(worker, seq),)
    settled, effects = _settled(policy, _with(state, worker, upload=None, held=push), event.at)
    return settled, (Hold(worker, seq), *effects)


def _settled(policy: NotifyPolicy, state: NotifyState, at: Seconds) -> Moved:
    """Reduce, or pass the round over, if it is time to."""
    if state.reducing or state.opened_at is None:
        return state, ()
    members = sorted(set(policy.members(state.round)))
    held = {w: edge.held[0] for w in members if (edge := state.edges.get(w)) is not None and edge.held}
    missing = tuple(worker for worker in members if worker not in held)
    late = at >= state.opened_at + policy.deadline
    alone = all(_is_dead(state, worker) for worker in missing)
    if not late and not alone:
        return state, ()
    why = f"the deadline of {policy.deadline:g} s is over" if late else "nobody else is waited for"
    because = f"round {state.round}: {len(held)} of {len(members)} members have pushed; {why}"
    if len(held) >= min(policy.quorum, len(members)):
        return replace(state, reducing=tuple(held)), (Reduce(state.round, held, missing, because),)
    if not late:  # the dead may come back
        return state, ()
    because += f" and the quorum of {policy.quorum} is not met"
    return _opened(policy, state, at, Pass(state.round, because))


def _is_dead(state: NotifyState, worker: Worker) -> bool:
    edge = state.edges.get(worker)
    return edge is not None and edge.dead


def _consumed(policy: NotifyPolicy, state: NotifyState, at: Seconds) -> Moved:
    edges, acks = dict(state.edges), list[Effect]()
    for worker in state.reducing:
        edge = edges[worker]
        assert edge.held is not None, f"the buffer of {worker!r} was emptied while it was read"
        edges[worker] = replace(edge, used=edge.held, held=None)
        acks.append(Ack(worker, *edge.held))
    return _opened(policy, replace(state, edges=edges, reducing=()), at, *acks)


def _opened(policy: NotifyPolicy, state: NotifyState, at: Seconds, *before: Effect) -> Moved:
    following = replace(state, round=state.round + 1, opened_at=at)
    settled, effects = _settled(policy, following, at)
    return settled, (*before, *effects)


def _with(state: NotifyState, worker: Worker, **changes: object) -> NotifyState:
    edge = replace(state.edges.get(worker, Edge()), **changes)  # type: ignore[arg-type]
    return replace(state, edges={**state.edges, worker: edge})

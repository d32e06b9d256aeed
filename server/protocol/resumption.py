"""Resumption: the state of a run that another process of the server goes on from, as a pure function."""

from __future__ import annotations

from varangian.server.protocol.events import Seconds
from varangian.server.protocol.state import NEVER, Phase, RunPolicy, RunState

REJOIN: Seconds = 30.0
"""Seconds for which the first selection after a resumption waits for workers, which have to come back."""


def without_connections(policy: RunPolicy, state: RunState) -> RunState:
    """The state with its round open and unanswered, and without all that depends on connections and clocks.

    Times are those of the clock of one process: they are forgotten, and spans are kept. So are vectors of
    earlier rounds that count in later ones. Workers that were invited to the round have not taken part in
    it: it is done again, and selects the same.
    """
    done = state.round >= policy.rounds
    held = {} if policy.selection.fresh_only else dict(state.held)
    last = {**state.last, **state.before}
    return state.replace(
        first=state.round,
        rejoin=min(REJOIN, policy.deadline / 2) if state.round > 0 else 0.0,
        phase=Phase.FINISHED if done else Phase.OPEN,
        reason=state.reason if done else "",
        closed=None,
        at=float("-inf"),
        opened_at=None,
        deadline=None,
        quorum_took=None,
        overdue=False,
        parked={},
        invited={},
        uploads={},
        asked={},
        declined={},
        before={},
        last={worker: round for worker, round in last.items() if round != NEVER},
        absent=frozenset(),
        given_up=frozenset(),
        held=held,
        took={worker: took for worker, took in state.took.items() if worker in held},
        history=state.history.without_connections(),
    )

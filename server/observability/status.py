"""Run status: where a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    round: int
    rounds: int
    finished: bool
    sentence: str
    """The condition that the open round waits for, or the reason why the run is finished."""
    present: tuple[Worker, ...]
    """Workers that have answered in this round or are uploading; as the next three, some of all workers."""
    counted: tuple[Worker, ...]
    faulty: Mapping[Worker, str]
    missing: tuple[Worker, ...]
    """Workers that were asked and have not answered yet."""
    declined: Mapping[Worker, str]
    """Workers that have declined this round."""
    absent: tuple[Worker, ...]
    """Workers without a connected process."""

    @classmethod
    def of(cls, machine: Machine, at: Seconds) -> Status:
        state, workers = machine.state, machine.policy.workers
        here = state.pushed.keys() | state.faults.keys()
        declined = {**(state.closed.declined if state.closed else {}), **state.declined}
        asked = state.invited.keys() if machine.by_invitation else set(workers)
        return cls(
            round=state.round,
            rounds=machine.policy.rounds,
            finished=state.phase is Phase.FINISHED,
            sentence=state.reason or machine.decision(at).because,
            present=tuple(w for w in workers if w in here or w in state.uploads),
            counted=tuple(w for w in workers if w in state.pushed),
            faulty=dict(state.faults),
            missing=tuple(w for w in workers if w in asked and w not in here and w not in declined),
            declined=declined,
            absent=tuple(sorted(state.absent)),
        )

"""The workers of a simulation: each pulls a model, computes a vector, and pushes it when its delay is over.

All compute in one thread before any of those vectors is pushed, as if they worked at the same time.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from varangian.config.build import task
from varangian.launch.server_run import ServerRun, split_of
from varangian.launch.simulation.virtual_clock import VirtualTime
from varangian.plugins import InputError
from varangian.protos.network.thread_results import result_of
from varangian.protos.payloads.encoding import take
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rounds.pulls import PendingPull
from varangian.server.training.parameters import Snapshot
from varangian.structured_logs import event
from varangian.worker.transport.results import Declined

log = logging.getLogger(__name__)

STALLED = (
    "round {round} would wait for ever: no vector on its way could complete its quorum of {quorum}. "
    "Lower server.quorum, or set server.shortfall=skip"
)


@dataclass(order=True)
class Push:
    """A vector on its way; of two that arrive at the same time the one with the lower `order` is first."""

    at: float
    order: int
    worker: str
    round: int = field(compare=False)
    row: Tensor = field(compare=False)


class SimulatedWorkers:
    """All workers of a run."""

    def __init__(
        self, server_run: ServerRun, coordinator: Coordinator, time: VirtualTime, executor: Executor
    ) -> None:
        self._server_run, self._coordinator = server_run, coordinator
        self._time, self._executor = time, executor
        self._split = split_of(server_run.config, server_run.model_side.layout)
        self._task = task(server_run.start)
        assert server_run.vectors is not None
        self._vectors = server_run.vectors
        self._by_invitation = server_run.machine.by_invitation
        self._next: dict[str, int] = {}
        """Workers that wait for a model, and the first round that they can take part in."""
        self._pulls: dict[str, PendingPull] = {}
        """Their pulls, where workers are invited."""
        self._answered = -1
        """Where nobody is invited: a round whose model all have that wait for it or for an earlier one."""
        self._pushes: list[Push] = []
        """A heap."""
        self._pushed = 0
        """Vectors that were sent on their way, where workers are invited."""
        self._reasons = set[str]()
        """Why workers declined, as far as it was logged."""

    async def work(self) -> None:
        """Take part in the run until it is finished, or is to be stopped."""
        resumed = self._server_run.resumed
        if resumed is None or resumed.state is None:
            for worker in self._task.workers:
                self._pull(worker, after=-1)
        else:
            self._restore(resumed.state)
        coordinator, stop = self._coordinator, self._server_run.stop
        while True:
            if not coordinator.idle:
                await coordinator.until_idle()
            if (model := coordinator.model).finished:
                return
            stopped = stop.event.is_set()
            if (stopped or coordinator.checkpointing.due) and self._all_have(model):
                await coordinator.keep(self.state())
            if stopped:
                return
            if models := self._answers(model):
                for answer in {answer.round: answer for answer in models.values()}.values():
                    await self._compute(
                        answer, [w for w, own in models.items() if own.round == answer.round]
                    )
            elif not self._advance(model.round):
                return

    def _all_have(self, model: Snapshot) -> bool:
        """Whether no worker has been given an older model, which no state would have."""
        answers = (pull.answer for pull in self._pulls.values())
        return all(answer is None or answer.round == model.round for answer in answers)

    def state(self) -> dict[str, Any]:
        """All that is on its way and all that workers remember, for a checkpoint."""
        answered = [worker for worker, pull in self._pulls.items() if pull.answer is not None]
        vectors = self._vectors
        return {
            "simulation": {
                "time": self._time.state(),
                "next": [*map(list, self._next.items())],
                "answered": self._answered,
                "pulls": [*self._pulls],
                "models": answered,
                "pushes": [vars(push) for push in self._pushes],
                "pushed": self._pushed,
                "reasons": sorted(self._reasons),
            },
            "workers": {part: vectors.state(part) for part in vectors.parts()},
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; the time has been restored before."""
        own, vectors = state["simulation"], self._vectors
        for part, tree in state["workers"].items():
            vectors.restore(part, tree)
        self._next, self._answered = dict(own["next"]), own["answered"]
        device = self._coordinator.model.parameters.device
        pushes = [Push(**push) for push in own["pushes"]]
        self._pushes = [replace(push, row=push.row.to(device)) for push in pushes]
        self._pushed, self._reasons = own["pushed"], set(own["reasons"])
        waiting = [worker for worker in own["pulls"] if worker not in own["models"]]
        pulls = self._coordinator.pulls.restore(waiting, own["models"])
        self._pulls = {worker: pulls[worker] for worker in own["pulls"]}

    def _pull(self, worker: str, after: int) -> None:
        """Let a worker ask for the model of a later round than this one."""
        round = after + 1
        round = round if self._task.listens(worker) else self._task.timetable.turn(worker, round)
        self._next[worker] = round
        if round <= self._answered:
            self._answered = -1  # it comes late to a round of others
        if self._by_invitation:
            self._pulls[worker] = self._coordinator.pulls.ask(worker, round - 1)

    def _answers(self, model: Snapshot) -> dict[str, Snapshot]:
        """The workers that have got a model, and which."""
        if self._by_invitation:
            return {w: answer for w, pull in self._pulls.items() if (answer := pull.answer) is not None}
        if self._answered == model.round:
            return {}  # all are waiting for a later round, or are away in this one
        self._answered = model.round
        task, round = self._task, model.round
        there = (w for w in self._next if task.timetable.available(w, round) or task.listens(w))
        return {w: model for w in there if self._next[w] <= round}

    async def _compute(self, model: Snapshot, workers: Iterable[str]) -> None:
        """Let these workers compute, and send their vectors on their way."""
        compute = self._vectors.vectors
        rows = await result_of(self._executor.submit(compute, workers, model.round, model.parameters))
        for worker, row in sorted(rows.items()):
            del self._next[worker]
            if self._by_invitation:
                self._coordinator.pulls.forget(self._pulls.pop(worker))
            if isinstance(row, Declined):
                await self._decline(worker, model.round, row.reason)
            if row is None or isinstance(row, Declined):
                self._pull(worker, model.round)
                continue
            try:
                at = self._time.now + self._task.delay(worker, model.round)
            except InputError as error:
                await self._decline(worker, model.round, str(error))
                self._pull(worker, model.round)
                continue
            # Invited workers of one moment may have models of several rounds: first asked, first served.
            order = self._pushed if self._by_invitation else 0
            self._pushed += self._by_invitation
            heapq.heappush(self._pushes, Push(at, order, worker, model.round, row))

    def _advance(self, round: int) -> bool:
        """Let time pass until the next push or alarm of the server; False if neither will ever come."""
        alarm, push = self._time.next_at, self._pushes[0] if self._pushes else None
        if push is not None and (alarm is None or push.at < alarm):
            self._time.advance(push.at)
            heapq.heappop(self._pushes)
            self._push(push.worker, push.round, push.row)
            self._pull(push.worker, push.round)
        elif alarm is not None:
            self._time.advance(alarm)
        else:
            quorum = self._server_run.machine.policy.quorum
            self._server_run.stop.because(STALLED.format(round=round, quorum=quorum))
            return False
        return True

    def _push(self, worker: str, round: int, row: Tensor) -> None:
        """Push a vector as on the wire, so that numbers are rounded where real workers round them."""
        encoding, split = self._server_run.encoding, self._split
        if split is not None:
            row = take(row, split.slices[split.of(round)])
            encoding = replace(encoding, numel=row.numel())
        if self._coordinator.hand_over(worker, round, row, encoding) is None:
            self._vectors.confirm(worker, round)

    async def _decline(self, worker: str, round: int, reason: str) -> None:
        """Tell the server that no vector comes; each reason is logged once."""
        if reason not in self._reasons:
            self._reasons.add(reason)
            log.warning(
                "%s sends nothing in round %d: %s",
                worker,
                round,
                reason,
                extra=event("declines", worker=worker, round=round),
            )
        await self._coordinator.decline(worker, round, reason)

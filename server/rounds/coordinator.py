"""Coordinator of a run: carries out what the protocol decides. `_round` is one round from top to bottom.

Everything here runs on one event loop. What takes long, aggregation, step and evaluation, is `Computation`
and runs in the compute thread: so the loop answers at all times.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.protos.payloads.encoding import (
    FLOAT32,
    Encoding,
    RowDtype,
    encode_vector,
    payload_digest,
    rounding_seed,
)
from varangian.protos.refusals import Refusal
from varangian.protos.text import escape
from varangian.server.observability.record import (
    Evaluate,
    LastWeight,
    Observe,
    RoundRecord,
)
from varangian.server.observability.status import Status
from varangian.server.protocol.events import (
    Absent,
    Close,
    Committed,
    Decline,
    Drain,
    Duplicate,
    Event,
    Fault,
    Finish,
    Forget,
    Gone,
    Invite,
    Members,
    Offer,
    Open,
    Present,
    Push,
    Reject,
    Seconds,
    Settled,
    Skip,
    Skipped,
    Stop,
    Tick,
    Withdraw,
    Worker,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.membership import effect_of, with_members
from varangian.server.protocol.state import Phase, RunState
from varangian.server.rounds.checkpointing import Checkpointing, Keeper, KeepRows, Plain
from varangian.server.rounds.clock import MONOTONIC, Alarm, Clock, LatestValue
from varangian.server.rounds.computation import Computation
from varangian.server.rounds.executor import ComputeThread
from varangian.server.rounds.membership import MemberChange
from varangian.server.rounds.pulls import Pulls
from varangian.server.rounds.windowed import WindowedRounds, WindowListener
from varangian.server.rows.slot import NOT_FINITE, Overtaken, Slot, SlotListener
from varangian.server.rows.source import Pushed, RowSource
from varangian.server.rows.storage import (
    HandedStorage,
    LentRows,
    RowsInPlace,
    RowStorage,
    UploadStorage,
    allocate_rows,
)
from varangian.server.training.gate import HeldOutGate
from varangian.server.training.learner import Learner
from varangian.server.training.parameters import Snapshot
from varangian.server.weak_methods import weakly

__all__ = ["Clock", "Coordinator", "Overtaken", "Slot", "Snapshot", "Status"]

log = logging.getLogger(__name__)

ENDS_OF_WAITING = (Open, Finish)
"""Effects that those who wait for a model are told of."""
STOPPED = "stopped on request"
"""The usual reason of a stop, as workers hear it."""
REASON = 200
"""Characters of what a worker gives as its reason."""
Task: TypeAlias = Close | Skip | Forget | Members | Finish | Exception
"""An effect that is carried out in the order in which the machine decided it."""


class Coordinator:
    """Coordinator of one run: the machine decides, the learner computes, and nobody else may touch either.

    Args:
        machine: the protocol of the run.
        learner: the parameters and the rule.
        evaluate: parameters to loss and accuracy; runs in the compute thread.
        evaluate_every: in rounds; the last one is always evaluated.
        observe: called on the loop with the record of each round, in order.
        clock: where time comes from.
        executor: as of `ComputeThread`.
        threads: as of `ComputeThread`.
        rows: type of the numbers of vectors that are kept until their round closes.
        rows_folder: for a file that these vectors lie in; None keeps them in memory.
        window: keep only a few blocks of columns of each vector, for rules that see no column twice; not
            for runs by invitation.
        row_source: makes the rows that the rule sees from the vectors that were pushed; by default they
            are the same.
        row_slots: how many vectors there can be at once; by default one of each worker.
        in_place: use the vectors of `hand_over` where they lie. Then there are no uploads.
        places_last: as of `Pulls`.
        keeper: keeps the state of the run between rounds.
        state: that the run goes on from, as the tree of a `ServerState`.
        connected: as of `Checkpointing`.
        keep_rows: takes the input of every step.
        gate: leaves vectors out that would raise a held-out loss; not with `window`.

    Raises:
        ValueError: the state does not fit.
        OSError: there is no room for the file of the vectors.
    """

    def __init__(
        self,
        machine: Machine,
        learner: Learner,
        *,
        evaluate: Evaluate,
        evaluate_every: int,
        observe: Observe,
        clock: Clock = MONOTONIC,
        executor: Executor | None = None,
        threads: int = 1,
        rows: RowDtype = FLOAT32,
        rows_folder: Path | None = None,
        window: bool = False,
        row_source: RowSource | None = None,
        row_slots: int | None = None,
        in_place: bool = False,
        places_last: bool = False,
        keeper: Keeper | None = None,
        state: Plain | None = None,
        connected: bool = False,
        keep_rows: KeepRows | None = None,
        gate: HeldOutGate | None = None,
    ) -> None:
        self._machine = machine
        self._learner = learner
        self._observe = observe
        self._clock, self._now = clock, clock.now
        self._row_source = row_source or Pushed()
        self._compute = ComputeThread(executor, threads)
        self._computation = Computation(
            learner, self._row_source, machine.policy, evaluate, evaluate_every, keep_rows, gate
        )
        self._d = learner.parameters.numel()
        self._windowed: WindowedRounds | None = None
        if window:
            listener = WindowListener(weakly(self._refusal), weakly(self._settle), weakly(self._fail))
            self._windowed = WindowedRounds(machine, learner, self._compute.run, clock, listener, rows)
        self._storage: RowStorage
        self._uploads: UploadStorage | None = self._windowed
        self._handed: HandedStorage | None = None
        if self._windowed is not None:
            self._storage = self._windowed
        elif in_place:
            self._storage = self._handed = RowsInPlace(rows)
        else:
            count = row_slots or len(machine.policy.workers)
            self._storage = self._handed = self._uploads = LentRows(
                count, learner.columns, rows, weakly(self._needed), rows_folder
            )
        self._listener = (
            self._windowed.slot_listener if self._windowed else SlotListener(weakly(self._refusal))
        )
        self._slots: dict[Worker, Slot] = {}
        self._digests: dict[int, dict[Worker, str]] = {}
        """Of the vectors that count, by round, until the record of the round is made."""
        self._row_dtype: RowDtype = rows
        self._rows_folder = rows_folder
        self.weights: dict[Worker, LastWeight] = {}
        """Of each worker of whom there was a row in an aggregate since this server has started."""
        self._expelled = frozenset[Worker]()
        """Workers whose vectors were withdrawn for a change that is to come."""
        self._changes: dict[int, MemberChange] = {}
        """The changes of members that take effect with a round, until its rows and its rule are changed."""
        self._membership: dict[int, dict[str, Any]] = {}
        """What the record of a round says of its change of members."""
        self.on_members: Callable[[Members, Mapping[Worker, str]], None] = lambda *_: None
        """Called when a change of members takes effect, with how each has left who is gone."""
        self._tasks = deque[Task]()
        self._more: asyncio.Future[None] | None = None
        """While `run` waits for a task."""
        self._idle = asyncio.Event()
        self._alarm = Alarm(clock, weakly(self._tick))
        self.checkpointing = Checkpointing(machine, learner, self._row_source, keeper, connected)
        if state is not None:
            self._computation.given = self.checkpointing.restore(state, partial(self._put_back, rows))
        self._grace: Callable[[], Seconds] = float
        self._why: Callable[[], str] = str
        self._grace_lasts = self._stopped = False
        self._closing: int | None = None
        """The round that was open when a stop came."""
        self._end_is_kept = keeper is None or connected
        """Whether workers may hear of the end: a server that goes on after it needs none of them."""
        self._model = LatestValue(Snapshot.of(learner.version, machine.state.round), clock)
        self.pulls = Pulls(machine, weakly(self._handle), self._model, clock, places_last)

    async def offer(
        self, worker: Worker, round: int, digest: bytes, encoding: Encoding | None = None
    ) -> Slot | Refusal:
        """Begin an upload: a slot for the vector of the worker. `complete` or `release` it in the end.

        Without an encoding its numbers come as float32.
        """
        if self._uploads is None:
            raise ValueError("Vectors that are used in place should be handed over.")
        if refusal := self._storage.lend(worker, round):
            return refusal
        if refusal := self._handle(Offer(worker, round, digest, self._now())):
            return refusal
        if before := self._slots.get(worker):
            before.close()
        encoding = encoding or Encoding(self._d)
        slot = Slot(worker, round, digest, encoding, self._uploads, self._listener)
        self._slots[worker] = slot
        slot.report_progress()
        return slot

    async def complete(self, slot: Slot) -> Refusal | str | None:
        """Count the vector in the slot: None, or why it does not count; a text if it proves a fault."""
        if not slot.full:
            raise ValueError(f"A slot should be full. Found {slot.columns} numbers of {slot.worker}.")
        if self._windowed is not None:
            # All bytes have arrived: the vector counts also if the caller is cancelled now.
            return await asyncio.shield(self._complete_windowed(slot, self._windowed))
        if not self._close_slot(slot):
            return Refusal.UNOFFERED
        return self._count(slot.worker, slot.round, slot.digest, slot.finite)

    def hand_over(
        self, worker: Worker, round: int, vector: Tensor, encoding: Encoding | None = None
    ) -> Refusal | str | None:
        """Count a vector (d,) of a worker in this process: an upload from its offer to its end.

        Numbers are rounded as on a wire with this encoding. Returns what `complete` does.
        """
        if self._handed is None:
            raise ValueError("Vectors that come through a window should be uploaded.")
        if refusal := self._storage.lend(worker, round):
            return refusal
        encoding = encoding or Encoding(self._d)
        dtype = encoding.plain
        if dtype is not None:
            # The record has the digests of what would be sent; those of a device would have to leave it.
            digest = payload_digest(encode_vector(vector, dtype)) if vector.device.type == "cpu" else b""
        else:
            payload = encoding.encode(vector, rounding_seed(worker, round))
            digest, vector = payload_digest(payload), encoding.decode(payload).to(vector.device)
            dtype = FLOAT32
        if refusal := self._handle(Offer(worker, round, digest, self._now())):
            return refusal
        return self._count(worker, round, digest, self._handed.keep(worker, vector, dtype))

    def _count(self, worker: Worker, round: int, digest: bytes, finite: bool) -> Refusal | str | None:
        """Count a vector that is there as a whole, or the fault that it proves."""
        now = self._now()
        if finite:
            refusal = self._handle(Push(worker, round, digest, now))
        else:
            refusal = self._handle(Fault(worker, round, NOT_FINITE, now))
        if refusal is not None or not finite:
            self._handle(Gone(worker, round, now))
        return refusal or (None if finite else NOT_FINITE)

    async def _complete_windowed(self, slot: Slot, windowed: WindowedRounds) -> Refusal | str | None:
        """As `complete`: a vector in a window counts with those of all members, or not at all."""
        if not slot.finite:
            self._handle(Fault(slot.worker, slot.round, NOT_FINITE, self._now()))
            await self.release(slot)
            return NOT_FINITE
        refusal = self._refusal(slot)
        if refusal is None:
            refusal = await windowed.wait_until_settled(slot)
        if refusal is not None:
            await self.release(slot)
        return refusal

    async def release(self, slot: Slot) -> None:
        """End an upload whose vector does not count."""
        if self._close_slot(slot):
            self._handle(Gone(slot.worker, slot.round, self._now()))
            slot.report_progress()

    async def decline(self, worker: Worker, round: int, reason: str) -> Refusal | None:
        """The worker has nothing to send in this round."""
        return self._handle(Decline(worker, round, escape(reason, REASON), self._now()))

    def absent(self, worker: Worker) -> None:
        """Report that no process of this worker is connected any more."""
        self._handle(Absent(worker, self._now()))

    def present(self, worker: Worker) -> None:
        """A process of this worker is connected again."""
        self._handle(Present(worker, self._now()))

    def withdraw(self, worker: Worker, reason: str) -> None:
        """The certificate of this worker was revoked: nothing of it counts that is not used yet.

        That is its vector in the open round, an upload of it, and what is kept of it for later rounds.
        """
        self._handle(Withdraw(worker, reason, self._now()))

    async def make_room(self, change: MemberChange) -> None:
        """Have a row for each vector that there can be with other workers.

        Raises:
            ValueError: the rows of this run are those of the workers of its start.
            OSError: there is no room for the file of the rows.
        """
        storage = self._changeable()
        if (lacking := change.row_slots - len(storage)) > 0:
            storage.add(await self._compute.run(self._more_rows, lacking))

    def change_members(self, change: MemberChange) -> int:
        """Go on with other workers from the next round on, which is returned, once there is room for them.

        Those that leave are invited no more, and their vectors of the open round count; of those that are
        expelled nothing counts any more. Both are gone when the next round opens.
        """
        before = self._machine.policy
        first = self._machine.follow(change.policy)
        self._changes[first] = change
        now = self._now()
        leaving, expelled = self._machine.policy.leaving - before.leaving, change.expelled - self._expelled
        self._expelled = change.expelled
        for worker in sorted(expelled):
            self._handle(Withdraw(worker, change.gone[worker], now))
        for worker in sorted(leaving):
            self._handle(Drain(worker, now))
        self._handle(Tick(now))  # a round without its quorum no longer waits for it
        return first

    def _more_rows(self, count: int) -> Tensor:
        return allocate_rows(count, self._learner.columns, self._row_dtype, self._rows_folder)

    def _changeable(self) -> LentRows:
        """The storage of rows, where the workers of the run can change."""
        if self._row_source.fixed or not isinstance(self._storage, LentRows):
            raise ValueError(self._row_source.fixed or "rows lie as the workers of the start have them")
        return self._storage

    def begin_with(self, change: MemberChange) -> None:
        """Go on with other workers from the round on that this server begins with, before it runs.

        Raises:
            ValueError: as `change_members`.
        """
        storage = self._changeable()
        if (lacking := change.row_slots - len(storage)) > 0:
            storage.add(self._more_rows(lacking))
        machine, before = self._machine, self._machine.policy
        machine.policy = replace(change.policy, first=self.round)
        # Those that were admitted have yet to connect, as all others.
        machine.state = with_members(machine.state, before, machine.policy).replace(absent=frozenset())
        self.checkpointing.begin_with(machine.state)
        members = effect_of(before, machine.policy, self.round)
        self._membership[self.round] = change.record(members)
        self._computation.change(change)

    async def snapshot(self, after: int, patience: Seconds) -> Snapshot | None:
        """As `Pulls.snapshot`."""
        return await self.pulls.snapshot(after, patience)

    @property
    def model(self) -> Snapshot:
        """The newest parameters, and the round that they are for."""
        return self._model.latest

    @property
    def idle(self) -> bool:
        """Whether all that the machine has decided is carried out, or nobody will do so any more."""
        return self._idle.is_set()

    async def until_idle(self) -> None:
        """Return when it is `idle`: then a round is open, or the run is finished."""
        while not self.idle:
            await self._idle.wait()

    @property
    def round(self) -> int:
        return self._machine.state.round

    @property
    def first(self) -> int:
        """The round that this server began with."""
        return self._machine.state.first

    @property
    def began_at_the_end(self) -> bool:
        """Whether this server has nothing to do but to tell workers that the run is finished."""
        return self.first >= self.rounds

    @property
    def rounds(self) -> int:
        """The number of rounds of the run if it is not stopped."""
        return self._machine.policy.rounds

    @property
    def row_bytes(self) -> int:
        """Bytes of memory of the vectors of a round."""
        return self._storage.nbytes

    def status(self) -> Status:
        return Status.of(self._machine, self._now())

    async def run(
        self, stop: asyncio.Event, grace: Callable[[], Seconds] = float, why: Callable[[], str] = str
    ) -> str:
        """Carry rounds out until the run is finished or `stop` is set; returns why it ended.

        A round that is being aggregated is completed before a stop takes effect. Errors of the learner, of
        `evaluate`, of `observe` and of the keeper end the run and are raised here.

        Args:
            stop: ends the run.
            grace: called at a stop: how many seconds it waits for the open round to close, if somebody has
                pushed for it and others still may.
            why: called at a stop: the reason that workers hear; empty for the usual one.
        """
        self._grace, self._why = grace, why
        self._alarm.set(self._machine.wake_at)
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._wake())
        try:
            reason = self._machine.state.reason if self.began_at_the_end else None
            while reason is None:
                reason = await self._round(stop)
            await self._announce_end()
            if self._stopped and not self.checkpointing.connected:
                await self.keep()
            return reason
        except BaseException as error:
            self._end_is_kept = True
            self._handle(Stop(f"the server ended on an error ({type(error).__name__})", self._now()))
            self._publish()
            raise
        finally:
            self._idle.set()
            stopping.cancel()
            self._compute.close()

    async def _announce_end(self) -> None:
        """Let workers hear that all rounds are done, once the state after them is on the disk.

        They leave then. Another server that goes on after a crash would wait for them in vain if it had to
        do rounds again.
        """
        if self._end_is_kept or not self.checkpointing.at_the_end:
            return
        if not self.began_at_the_end and self.checkpointing.keeper is not None:
            await self._compute.run(self.checkpointing.keeper.wait)
        self._end_is_kept = True
        self._publish()

    async def _round(self, stop: asyncio.Event) -> str | None:
        """One round, from its invitations to its record; returns why the run has ended, if it has."""
        # Select, receive, close: the machine does while this waits, event by event (`_handle`) of pulls,
        # uploads and time.
        ended = await self._ended(stop)
        if isinstance(ended, Finish):
            return ended.reason
        log.debug("%s", ended.because)
        pushes = self._digests[ended.round] or None
        if isinstance(ended, Skip):
            evaluation = None
            if self._computation.takes_time(ended):
                read = ended.workers if self._computation.reads(ended) else ()
                evaluation = await self._compute.run(
                    self._computation.skip, ended, self._storage.rows(read)
                )
            self._storage.release(ended.workers)
            del self._digests[ended.round]
            await self._record(self._computation.record_of_skip(ended, evaluation, pushes))
            return None
        try:
            # In a window the update was aggregated while its rows came.
            windowed = await self._windowed.aggregation(ended) if self._windowed else None
            record = await self._compute.run(
                self._computation.step,
                ended,
                self._machine.policy.f,
                self._storage.rows(ended.workers),
                windowed,
                self._model.latest.version,
            )
        except AggregationError as error:
            self._handle(Skipped(ended.round, f"round {ended.round}: {error}", self._now()))
            return None  # the machine has decided to skip it, which comes next
        # Commit: the next round opens with these parameters.
        self._model.latest = Snapshot.of(self._learner.version)
        self._handle(Committed(ended.round, self._now()))
        del self._digests[ended.round]
        await self._record(replace(record, pushes=pushes))
        return None

    async def _record(self, record: RoundRecord) -> None:
        """Hand the record of a round on, and keep the state after it if that is due."""
        membership = self._membership.pop(record.round, None)
        if membership is not None:
            record = replace(record, membership=membership)
        if self._learner.fragments is not None:
            record = replace(record, fragment=self._learner.fragments.of(record.round))
        self._note_weights(record)
        self._observe(record)
        if self.checkpointing.note(record):
            await self.keep()

    def _note_weights(self, record: RoundRecord) -> None:
        """Note the coefficients of the rows of an aggregate; one that took no part has none, which is 0.

        For a rule without weights that is all that is known, until the next update.
        """
        if record.skipped is None:
            if record.weights is None:
                self.weights.clear()
            found = {**(record.weights or {}), **dict.fromkeys((*record.gated, *record.dropped), 0.0)}
            self.weights |= {name: LastWeight(record.round, weight) for name, weight in found.items()}

    async def keep(self, more: Plain | None = None) -> None:
        """Let the keeper copy the state of the run, and with it `more`, by name."""
        if self.checkpointing.keeper is None or self.round == 0:
            return
        while self._tasks and isinstance(task := self._tasks[0], Forget | Members):
            self._tasks.popleft()
            await self._catch_up(task)
        state, members = self.checkpointing.state, self._machine.policy
        held = self._storage.rows(state.held)
        self._storage.hold(held)
        try:
            await self._compute.run(
                self.checkpointing.copy, state, members, held, self._computation.given, more or {}
            )
        finally:
            self._storage.release(held)

    def _put_back(self, dtype: RowDtype, worker: Worker, row: Tensor) -> None:
        """Store a vector again that waits for the round that uses it."""
        assert self._handed is not None, "a window holds no vectors between rounds"
        self._storage.lend(worker, self.round)
        self._handed.keep(worker, row.to(self._learner.parameters.device), dtype)

    async def _ended(self, stop: asyncio.Event) -> Close | Skip | Finish:
        """The end of the round that is being received."""
        while isinstance(task := await self._next(stop), Forget | Members):
            await self._catch_up(task)
        if isinstance(task, Exception):
            raise task
        return task

    async def _catch_up(self, task: Forget | Members) -> None:
        """Let rows and rule follow a worker that is gone, or a change of members."""
        if isinstance(task, Forget):
            await self._compute.run(self._computation.forget, task.worker)
        else:
            await self._compute.run(self._computation.change, self._changes.pop(task.round))

    async def _next(self, stop: asyncio.Event) -> Task:
        """The next effect to carry out; a stop comes after what is due already."""
        while not self._tasks:
            if stop.is_set() and not self._in_grace():
                self._stopped = True
                self._handle(Stop(self._why() or STOPPED, self._now()))
                break
            self._more = asyncio.get_running_loop().create_future()
            self._idle.set()
            await self._more
            self._more = None
        return self._tasks.popleft()

    def _in_grace(self) -> bool:
        """Whether a stop waits for the round that was open when it came."""
        if self._closing is None:
            self._closing = self.round
            if (seconds := self._grace()) > 0:
                self._grace_lasts = True
                self._clock.call_later(seconds, self._end_grace)
        return self._grace_lasts and self.round == self._closing and self._machine.has_begun

    def _end_grace(self) -> None:
        self._grace_lasts = False
        self._wake()

    def _add(self, task: Task) -> None:
        self._tasks.append(task)
        self._idle.clear()
        self._wake()

    def _wake(self) -> None:
        """Let `_next` look again."""
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _handle(self, event: Event) -> Refusal | None:
        """Give an event to the machine, start what follows, and return why it was refused, if it was."""
        refusal, before = None, self._machine.state
        changed = list[tuple[Members, Mapping[Worker, str]]]()
        for effect in self._machine.handle(event):
            match effect:
                case Reject() | Duplicate():
                    refusal = effect.refusal if isinstance(effect, Reject) else Refusal.DUPLICATE
                    log.debug("%s: %r", refusal.name, event)
                case Close() | Skip() | Finish():
                    self._add(effect)
                    if not isinstance(effect, Finish):
                        self._note_digests(effect, event, before)
                    if isinstance(effect, Skip) and self._row_source.remembers:
                        self._storage.hold(effect.workers)
                case Forget(worker):
                    if self._windowed is not None:
                        self._windowed.withdraw(worker)
                    self._add(effect)
                case Invite(worker, round):
                    self.pulls.invite(worker, round)
                case Members():
                    self._note_members(effect)
                    changed.append((effect, self._changes[effect.round].gone))
                case _:
                    pass
            if isinstance(effect, ENDS_OF_WAITING):
                self._publish()
        self._alarm.set(self._machine.wake_at)
        if self._windowed is not None:
            self._windowed.update()
        if self._grace_lasts:
            self._wake()
        for members, gone in changed:
            self.on_members(members, gone)
            self.pulls.welcome(members.admitted)
        return refusal

    def _note_digests(self, ended: Close | Skip, event: Event, before: RunState) -> None:
        """Note the digests of the vectors that count in a round, which `event` has ended."""
        there = {**before.pushed, **self._machine.state.pushed}
        match event:
            case Push(worker, _, digest):
                there[worker] = digest
            case Settled(_, digests):
                there |= digests
            case _:
                pass
        found = {worker: there[worker].hex() for worker in ended.workers if there.get(worker)}
        self._digests.setdefault(ended.round, found)

    def _note_members(self, members: Members) -> None:
        """A change takes effect: of the pulls at once, of rows and rule in its turn."""
        change = self._changes[members.round]
        for worker in members.gone:
            self.weights.pop(worker, None)
            self.pulls.dismiss(worker, f"{worker} has left the run: {change.gone[worker]}")
        self._membership[members.round] = change.record(members)
        self._add(members)

    def _publish(self) -> None:
        """Tell those who wait for a model that another round is open, or that the run is finished."""
        state = self._machine.state
        self.checkpointing.note_open()
        finished = state.phase is Phase.FINISHED
        if finished and not self._end_is_kept and self.checkpointing.at_the_end:
            return  # until `_announce_end`
        latest = replace(self._model.latest, round=state.round, finished=finished, reason=state.reason)
        self._model.publish(latest)
        if finished:
            self.pulls.finish()

    def _tick(self) -> None:
        self._handle(Tick(self._now()))

    def _refusal(self, slot: Slot) -> Refusal | None:
        """Why the vector in the slot would not count any more, if so."""
        if self._slots.get(slot.worker) is not slot:
            return Refusal.UNOFFERED
        return self._machine.refusal(slot.worker, slot.round)

    def _needed(self, worker: Worker) -> bool:
        """Whether the row of this worker is being written to, or holds a vector that counts."""
        return worker in self._slots or worker in self._machine.state.pushed

    def _close_slot(self, slot: Slot) -> bool:
        """Close the slot; False if it was closed before."""
        if self._slots.get(slot.worker) is not slot:
            return False
        del self._slots[slot.worker]
        slot.close()
        return True

    def _settle(self, slots: Sequence[Slot]) -> Refusal | None:
        """Count the vectors of all members of a window at once."""
        digests = {slot.worker: slot.digest for slot in slots if self._close_slot(slot)}
        return self._handle(Settled(slots[0].round, digests, self._now()))

    def _fail(self, error: Exception) -> None:
        """End the run with this error."""
        self._add(error)

"""Handing runs over to an engine, and finding out what has become of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from varangian.experiments.sweep.engines.batch import Batch, batches
from varangian.experiments.sweep.engines.queue import Queue, QueueError, QueueFullError, State
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.experiments.sweep.processes.forker import Round
from varangian.experiments.sweep.processes.job import Ending, Job, record_crash
from varangian.experiments.sweep.processes.runner import Event, Remark
from varangian.launch import RunError
from varangian.protos.text import escape

LOOK = 0.5
"""Seconds between two looks at the endings in the folders of batches."""
ASK = 3.0
"""Seconds between two questions to the engine, which has other users."""
SETTLE = 2
"""Answers in a row by which a task has ended before it is believed: files of another node come late."""
TRIES = 3
"""Times that a run is handed over that is lost by no fault of its own."""
FAREWELL = 40.0
"""Seconds for the tasks of a batch to end that is cancelled; engines wait before they kill."""
ABANDONED = 600.0
"""Seconds after which a batch that no engine has, and no sweep looks after, is never handed over."""
SENTENCE = 1000
"""Characters of what an engine says."""
FOLLOWED = 16
"""Runs whose rounds are read: those on the screen."""


@dataclass
class _Live:
    """A batch that the engine has."""

    batch: Batch
    handle: str
    lock: int | None
    """None where another sweep looks after it."""
    open: dict[str, int]
    """The runs that have not ended, with the number of their task."""
    ended: dict[int, int] = field(default_factory=dict[int, int])
    """Answers in a row by which a task has ended."""
    states: Mapping[int, State] = field(default_factory=dict[int, State])
    """The last answer."""

    @property
    def owned(self) -> bool:
        return self.lock is not None


class QueueRunner:
    """A runner that hands runs to an engine, and finds those again that an earlier sweep has handed over.

    Runs stay with the engine when this process is killed or leaves without an error; an error, as Ctrl-C is
    one, cancels them.

    Args:
        queue: the engine.
        output: the folder of run folders, which all nodes share.
        name: of the sweep.
        per_task: runs of a task.
        limit: of tasks at the same time; None is as many as the engine starts.
    """

    def __init__(
        self, queue: Queue, output: Path, name: str, per_task: int = 1, limit: int | None = None
    ) -> None:
        self._queue, self._output, self._name = queue, output.absolute(), name
        self._per_task, self._limit = per_task, limit
        self._folders = RunFolders(self._output)
        self._pending: list[Job] = []
        self._live: list[_Live] = []
        self._jobs: dict[str, Job] = {}
        self._started = set[str]()
        self._running = dict[str, int]()
        """Runs that have begun, with the last round that was told."""
        self._tries = dict[str, int]()
        self._told = list[Event]()
        self._said = set[str]()
        self._look_at = self._ask_at = 0.0

    def __enter__(self) -> QueueRunner:
        try:
            self._queue.check()
        except QueueError as error:
            raise RunError(str(error)) from error
        for batch in batches(self._output, self._queue.name):
            self._find_again(batch)
        return self

    def __exit__(self, *error: object) -> None:
        failed = error[:1] not in ((), (None,))
        for live in self._live:
            if live.lock is None:
                continue
            ours = any(id in self._started for id in live.batch.ids)
            if failed and ours:
                self._cancel(live)
            if (failed and ours) or not live.open:
                live.batch.remove()
            os.close(live.lock)

    def start(self, job: Job) -> None:
        """Hand a run over, with the others of this moment; or find that the engine has it."""
        self._started.add(job.id)
        if self._folders.is_complete(job.id):  # since the sweep has looked
            self._told.append(Ending(job.id, "found"))
            return
        for live in self._live:
            if job.id in live.open:
                self._jobs[job.id] = job
                if not live.owned:
                    self._told.append(Ending(job.id, "taken"))
                return
        self._pending.append(job)

    def events(self, seconds: float) -> Iterator[Event]:
        """Events since the last call.

        Raises:
            RunError: the engine refuses the runs.
        """
        until = time.monotonic() + seconds
        self._submit()
        while True:
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + LOOK
                self._look()
            if now >= self._ask_at:
                self._ask_at = now + ASK * max(1, len(self._live))
                self._ask()
            if self._told or now >= until:
                break
            time.sleep(max(0.0, min(until, self._look_at, self._ask_at) - time.monotonic()))
        told, self._told = self._told, []
        yield from told

    # -- handing over

    def _find_again(self, batch: Batch) -> None:
        """Go on with a batch of an earlier sweep; remove it where nothing of it is left."""
        lock, handle = batch.lock(), batch.handle
        if not handle:  # another sweep is about to hand it over, or was killed before that
            if lock is not None:
                os.close(lock)
                if batch.age() > ABANDONED:
                    batch.remove()
            return
        try:
            states = self._queue.states(handle)
        except QueueError as error:
            if lock is not None:
                os.close(lock)
            raise RunError(f"{error} It still has runs of an earlier sweep in {self._output}.") from error
        left = {
            id: index
            for index, ids in enumerate(batch.tasks)
            for id in ids
            if (state := states.get(index)) is not None
            and state.where != "ended"
            and not batch.has_ended(id)
        }
        if left:
            self._live.append(_Live(batch, handle, lock, left))
            if lock is not None:
                self._remark(f"{self._queue.title} {handle} still has {len(left)} of these runs")
        elif lock is not None:
            batch.remove()
            os.close(lock)

    def _submit(self) -> None:
        """Hand over what waits for it, as far as the engine takes it."""
        while self._pending:
            if self._limit is not None and any(live.owned for live in self._live):
                return  # the limit is that of one batch
            jobs = self._pending[: self._queue.most * self._per_task]
            tasks = [jobs[at : at + self._per_task] for at in range(0, len(jobs), self._per_task)]
            if not self._hand_over(tasks):
                return
            del self._pending[: len(jobs)]

    def _hand_over(self, tasks: Sequence[Sequence[Job]]) -> bool:
        try:
            batch = Batch.write(self._queue.name, self._name, tasks)
        except OSError as error:
            reason = f"{self._output} cannot be written: {error.strerror or error}"
            raise RunError(f"{reason}. Choose another folder with --output DIR.") from error
        lock = batch.lock()
        try:
            handle = self._queue.submit(batch, self._limit)
        except QueueError as error:
            batch.remove()
            if lock is not None:
                os.close(lock)
            if isinstance(error, QueueFullError) and any(live.owned for live in self._live):
                self._remark(f"{error} {len(self._pending)} runs are handed over when others have ended.")
                return False
            raise RunError(str(error)) from error
        batch.keep_handle(handle)
        runs = {id: index for index, ids in enumerate(batch.tasks) for id in ids}
        self._live.append(_Live(batch, handle, lock, runs))
        self._jobs |= {job.id: job for jobs in tasks for job in jobs}
        for id in runs:
            self._tries[id] = self._tries.get(id, 0) + 1
        self._ask_at = time.monotonic() + LOOK
        return True

    def _cancel(self, live: _Live) -> None:
        """End the tasks of a batch, and wait for that, so that their folders are free."""
        until = time.monotonic() + FAREWELL
        while time.monotonic() < until:
            try:
                self._queue.cancel(live.handle)
                states = self._queue.states(live.handle)
            except QueueError:
                return
            if all(state.where == "ended" for state in states.values()):
                return
            time.sleep(LOOK)

    # -- finding out

    def _look(self) -> None:
        """See which runs have ended, by the files of their tasks, and how far the others are."""
        for live in [*self._live]:
            if not live.owned:
                continue
            for ending in live.batch.endings({id for id in live.batch.ids if id not in live.open}):
                self._close(live, ending)
        followed = [id for id in self._running if id in self._jobs][:FOLLOWED]
        for id in followed:
            rounds = rounds_of(self._folders.running(id))
            if rounds > self._running[id]:
                self._running[id] = rounds
                self._told.append(Round(id, rounds))

    def _close(self, live: _Live, ending: Ending) -> None:
        live.open.pop(ending.id, None)
        self._running.pop(ending.id, None)
        if self._jobs.pop(ending.id, None) is not None:
            self._told.append(ending)
        if not live.open:
            self._drop(live)

    def _drop(self, live: _Live) -> None:
        """Forget a batch that is over."""
        if live in self._live:
            self._live.remove(live)
            if live.lock is not None:
                live.batch.remove()
                os.close(live.lock)

    def _ask(self) -> None:
        """Ask the engine how the tasks are."""
        for live in [*self._live]:
            try:
                states = self._queue.states(live.handle)
            except QueueError as error:
                self._remark(f"{error} The sweep goes on when it does.")
                continue
            live.states = states
            if not live.owned:
                self._look_at_shared(live)
                continue
            self._say_why(live)
            for index in sorted({*live.open.values()}):
                state = states.get(index, State("ended", f"{self._queue.title} knows it no more"))
                if state.where == "running":
                    self._begin(live, index)
                live.ended[index] = live.ended.get(index, 0) + 1 if state.where == "ended" else 0
                if live.ended[index] >= SETTLE:
                    self._lose(live, index, state)

    def _look_at_shared(self, live: _Live) -> None:
        """Let go of a batch of another sweep when its tasks are over, or that sweep has gone."""
        for id, index in [*live.open.items()]:
            state = live.states.get(index)
            if state is None or state.where == "ended" or live.batch.has_ended(id):
                live.open.pop(id)
        if not live.open:
            self._live.remove(live)
        else:
            live.lock = live.batch.lock()  # of a sweep that was killed

    def _begin(self, live: _Live, index: int) -> None:
        """Runs of a task that runs have begun as soon as their folders are there."""
        for id in live.batch.tasks[index]:
            if id in live.open and id not in self._running and self._folders.running(id).is_dir():
                self._running[id] = 0
                self._told.append(Round(id, 0))

    def _lose(self, live: _Live, index: int, state: State) -> None:
        """A task has ended, and runs of it have not said how."""
        for ending in live.batch.endings({id for id in live.batch.ids if id not in live.open}):
            self._close(live, ending)
        for id in [id for id in live.batch.tasks[index] if id in live.open]:
            if self._folders.is_complete(id):
                self._close(live, Ending(id, "complete"))
            elif state.lost and self._tries.get(id, 0) < TRIES:
                self._close(live, Ending(id, "interrupted"))
            elif not self._folders.is_running(id):
                self._close(live, Ending(id, "error", self._record(live, id, index, state)))

    def _record(self, live: _Live, id: str, index: int, state: State) -> str:
        sentence = f"its task {index} of {self._queue.title} {live.handle} ended without a result"
        if state.reason:
            sentence += f": {escape(state.reason, SENTENCE)}"
        if words := live.batch.last_words(index):
            sentence += f"; and printed last: {words}"
        if (job := self._jobs.get(id)) is not None:
            record_crash(job, sentence, live.batch.log(index))
        return sentence

    def _say_why(self, live: _Live) -> None:
        """Tell once why tasks wait, where that may last."""
        waiting = [state.reason for state in live.states.values() if state.where == "waiting"]
        for reason in dict.fromkeys(filter(None, waiting)):
            if (key := f"{live.handle} {reason}") not in self._said:
                self._said.add(key)
                count = waiting.count(reason)
                text = f"{self._queue.title} {live.handle}: {count} tasks wait: {reason}"
                self._told.append(Remark(escape(text, SENTENCE)))

    def _remark(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._told.append(Remark(escape(text, SENTENCE)))


def rounds_of(folder: Path) -> int:
    """How many rounds of a run in progress are recorded, from the last whole line."""
    try:
        with (folder / "rounds.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (1 << 15)))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["round"]) + 1
    except (OSError, ValueError, LookupError, TypeError):
        return 0

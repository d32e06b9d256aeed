"""The history of the workers of a process on its disk: written ahead of each push, and gone back to.

A vector of a worker is a function of the model and of what it remembers of its last round. A process that
was killed, and one whose server has gone back to a checkpoint, so send the same bits again. All parts of a
process go back together: attackers here compute vectors of each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from varangian import files
from varangian.protos.contract import Terms
from varangian.structured_logs import event
from varangian.worker.attacks.memory import Unpackable, modules_of, packed, unpacked
from varangian.worker.checkpoints.slots import slots_of
from varangian.worker.checkpoints.store import LINE, PartStore, Restored
from varangian.worker.training.compute import ATTACKERS, WorkerCompute

log = logging.getLogger(__name__)


class WorkerHistory:
    """What the workers of a process remember, for each start of their server.

    Its methods are called from one thread, that of the computation.

    Args:
        worker_compute: remembers, and computes.
        folder: from the name of a run to the folder with a subfolder for each part; None keeps nothing.
    """

    def __init__(self, worker_compute: WorkerCompute, folder: Callable[[str], Path] | None = None) -> None:
        self._worker_compute = worker_compute
        self._folder = folder
        self._run, self._terms = "", Terms()
        self._stores: dict[str, PartStore] = {}
        self._written: dict[str, tuple[int | None, ...]] = {}
        """The rounds of each part as it was written last."""
        self._back = set[str]()
        """Workers that know of this start of the server."""
        self._told = set[str]()
        self._syncing: ThreadPoolExecutor | None = None

    def rewind(self, name: str, run: str, terms: Terms, round: int) -> tuple[int, Tensor] | None:
        """Go back to what was remembered at the border from which the server has gone on.

        Done once for each start of it, whoever of the workers hears of it first; and where a worker is
        asked for a round that is over here.

        Args:
            name: of a worker that has joined.
            run: the name of the run.
            terms: of this start of its server.
            round: whose model the worker was given.

        Returns:
            The last delta of the worker and its round, if the server may have counted it.
        """
        if run == self._run and terms.epoch < self._terms.epoch:
            return None  # another worker has heard of a later start; so will this one
        if (run, terms.epoch) != (self._run, self._terms.epoch) or name in self._back:
            self._go_back(run, terms, round)
        self._back.add(name)
        return self._worker_compute.unconfirmed(name)

    def _go_back(self, run: str, terms: Terms, round: int) -> None:
        if run != self._run:
            self._stores = {}
            for part in {*self._worker_compute.hosted, ATTACKERS}:
                self._worker_compute.forget(part)
        self._run, self._terms = run, terms
        self._written, self._back = {}, set()
        for part in {*self._worker_compute.hosted, ATTACKERS}:
            self._rewind_part(part, round)

    def compute(self, name: str, run: str, epoch: int, round: int, parameters: Tensor) -> Tensor | None:
        """The vector of a worker, and its history written down.

        None also where the server was started again meanwhile, as another worker has heard: what is
        remembered is that of another round then.

        Raises:
            Declined: as `WorkerCompute.answer`.
        """
        if (run, epoch) != (self._run, self._terms.epoch):
            return None
        try:
            return self._worker_compute.answer(name, round, parameters)
        finally:
            self._write(round)

    def confirm(self, name: str, run: str, epoch: int, round: int) -> None:
        """Note that the server has counted the vector of a worker."""
        if (run, epoch) != (self._run, self._terms.epoch):
            return
        self._worker_compute.confirm(name, round)
        store = self._stores.get(name)
        if store is not None and self._worker_compute.task.deltas:
            try:
                store.confirm(round)
            except OSError as error:
                self._tell(name, error)

    def line_memory(self, name: str, round: int) -> dict[str, Any]:
        """The memory of an attack on the protocol before it sends for a round; after `rewind`."""
        store = self._line_store(name)
        try:
            found = None if store is None else store.rewind(self._run, self._terms, round)
            if found is None:
                return {}
            return dict(unpacked(found.tree, modules_of(self._worker_compute.task.protocol)))
        except (OSError, Unpackable, TypeError, ValueError) as error:
            self._tell(_line_of(name), error)
            return {}

    def keep_line(self, name: str, run: str, epoch: int, round: int, memory: dict[str, Any]) -> None:
        """Write down the memory of an attack on the protocol after it has sent for a round."""
        store = self._line_store(name)
        if store is None or not memory or (run, epoch) != (self._run, self._terms.epoch):
            return
        try:
            store.put(round, packed(memory, modules_of(self._worker_compute.task.protocol)))
        except (OSError, TypeError, Unpackable) as error:
            self._tell(_line_of(name), error)
            self._end(store, round)

    def _line_store(self, name: str) -> PartStore | None:
        if self._folder is None:
            return None
        part = _line_of(name)
        if part not in self._stores:
            self._stores[part] = PartStore(self._part_folder(self._run, part), sync=self._sync)
        return self._stores[part]

    def close(self, over: bool = False) -> None:
        """Wait until what is to be kept is on the disk; of a run that is over that is less."""
        if self._syncing is not None:
            self._syncing.shutdown()
        for store in self._stores.values() if over else ():
            with suppress(OSError):
                store.tidy()

    def say_what_stays(self) -> None:
        """Log where the states of the run stay: only their owner knows when nobody needs them any more."""
        if self._folder is None:
            return
        folder, size = self._folder(self._run), 0
        for part in self._stores:
            for slot in slots_of(self._part_folder(self._run, part)):
                with suppress(OSError):
                    size += slot.path.stat().st_size
        if size:
            log.info(
                "what workers of this process remember of the run stays in %s (%.1f MB), for the case that "
                "it goes on; delete the folder if it will not",
                folder,
                size / 1e6,
                extra=event("states_stay"),
            )

    def _last_round(self, part: str) -> int:
        rounds = self._worker_compute.rounds(part)
        return max((round for round in rounds if round is not None), default=-1)

    def _rewind_part(self, part: str, round: int) -> None:
        compute, terms = self._worker_compute, self._terms
        border = min(round, terms.resumed_at) if terms.epoch else round
        if part not in compute.parts():
            compute.forget(part)
            return
        store = self._store(part)
        if store is None:
            if self._last_round(part) > border:
                compute.forget(part)
                self._say_lost(part, border)
            return
        elsewhere = slots_of(self._part_folder(terms.parent, part)) if terms.parent else ()
        known, found = store.knows(self._run), None
        try:
            found = store.rewind(self._run, terms, round, elsewhere)
        except OSError as error:
            self._tell(part, error)
        if found is not None:
            self._restore(part, found, round)
            return
        compute.forget(part)
        if border and (known or terms.resumed_at):
            self._say_lost(part, border)

    def _restore(self, part: str, found: Restored, round: int) -> None:
        self._worker_compute.restore(part, found.tree)
        confirmed = found.label.confirmed
        if confirmed is not None and confirmed < round:
            self._worker_compute.confirm(part, confirmed)
        self._written[part] = self._worker_compute.rounds(part)

    def _write(self, round: int) -> None:
        """Write down each part that has changed."""
        if self._folder is None:
            return
        for part in self._worker_compute.parts():
            rounds = self._worker_compute.rounds(part)
            if rounds == self._written.get(part) or all(known is None for known in rounds):
                continue
            store = self._store(part)
            assert store is not None
            try:
                store.put(self._last_round(part), self._worker_compute.state(part))
            except (OSError, TypeError) as error:
                self._tell(part, error)
                self._end(store, round)
            self._written[part] = rounds

    def _end(self, store: PartStore, round: int) -> None:
        try:
            store.end(round)
        except OSError:
            log.debug("a label cannot be written, too", exc_info=True)

    def _store(self, part: str) -> PartStore | None:
        if self._folder is None:
            return None
        if part not in self._stores:
            self._stores[part] = PartStore(self._part_folder(self._run, part), sync=self._sync)
        return self._stores[part]

    def _part_folder(self, run: str, part: str) -> Path:
        assert self._folder is not None
        hosted = self._worker_compute.hosted
        return self._folder(run) / (f"attackers@{hosted[0]}" if part == ATTACKERS else part)

    def _sync(self, path: Path) -> None:
        """Have a state on the disk soon; the next round does not wait for it."""
        if self._syncing is None:
            self._syncing = ThreadPoolExecutor(1, "varangian-states")
        self._syncing.submit(_sync, path)

    def _say_lost(self, part: str, round: int) -> None:
        log.warning(
            "%s: its state of round %d is not kept here; it goes on without the momentum of earlier rounds",
            part.lstrip("@"),
            round,
            extra=event("state_lost", worker=part.lstrip("@"), round=round),
        )

    def _tell(self, part: str, error: Exception) -> None:
        """Say once for each part that it cannot be kept."""
        if part not in self._told:
            self._told.add(part)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.warning(
                "the state of %s cannot be kept in %s (%s); after a crash it goes on without it",
                part.lstrip("@"),
                self._part_folder(self._run, part),
                reason,
                extra=event("state_not_kept", worker=part.lstrip("@")),
            )


def _line_of(name: str) -> str:
    """The part with what an attack on the protocol remembers of a worker; no worker has this name."""
    return f"{LINE}{name}"


def _sync(path: Path) -> None:
    try:
        with open(path, "rb") as stream:
            files.fsync(stream.fileno())
    except OSError as error:
        log.warning(
            "%s may not be on the disk after a power failure: %s",
            path,
            error,
            extra=event("state_not_synced"),
        )

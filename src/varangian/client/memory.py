"""Worker momentum of a user's loop, kept in memory or on the disk, and gone back with the server.

The vector of a round is written down before it is sent. So a worker that was killed, and one whose
server has gone back to a checkpoint, goes on with the momentum of the round that it is given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from varangian import files
from varangian.protos.contract import Terms
from varangian.structured_logs import event
from varangian.worker.checkpoints.slots import slots_of
from varangian.worker.checkpoints.store import PartStore
from varangian.worker.training.momentum import Momentum

log = logging.getLogger(__name__)


class MomentumMemory:
    """The momentum of one worker, for each start of its server.

    Its methods are called from the thread of the loop.

    Args:
        name: of the worker.
        beta: of the momentum; 0 is none.
        folder: from the name of a run to the folder with a subfolder for each worker; None keeps nothing on
            the disk.
    """

    def __init__(self, name: str, beta: float, folder: Callable[[str], Path] | None) -> None:
        self._name, self.beta, self._folder = name, beta, folder
        self._momentum = Momentum(beta)
        self._run, self._terms = "", Terms()
        self._store: PartStore | None = None
        self._told = False

    def rewind(self, run: str, terms: Terms, round: int) -> None:
        """Go back to the momentum from which the first round with this start of a server is computed.

        Args:
            run: the name of the run.
            terms: of this start of its server.
            round: whose parameters the worker was given.
        """
        if run != self._run:
            self._store = None
            self._momentum.restore(self._name, None)
        self._run, self._terms = run, terms
        if self.beta == 0:
            return
        border = min(round, terms.resumed_at) if terms.epoch else round
        if self._folder is None:
            if (self._momentum.round(self._name) or -1) > border:
                self._momentum.restore(self._name, None)
                self._say_lost(border)
            return
        if self._store is None:
            self._store = PartStore(self._folder(run) / self._name, sync=_sync)
        elsewhere = slots_of(self._folder(terms.parent) / self._name) if terms.parent else ()
        known, found = self._store.knows(run), None
        try:
            found = self._store.rewind(run, terms, round, elsewhere)
        except OSError as error:
            self._tell(error)
        self._momentum.restore(self._name, None if found is None else found.tree["momentum"])
        if found is None and border and (known or terms.resumed_at):
            self._say_lost(border)

    def vector(self, round: int, gradient: Tensor) -> Tensor:
        """The vector of a round, written down; of a round that is there already the same as before.

        Raises:
            DivergedError: the gradient has numbers that must not be sent. Nothing has changed then.
        """
        known = self._momentum.round(self._name)
        vector = self._momentum(self._name, round, lambda: gradient)
        if self._store is not None and known != round:
            try:
                tree = {"momentum": self._momentum.state(self._name), "deltas": None, "attack": None}
                self._store.put(round, tree)
            except OSError as error:
                self._tell(error)
                with suppress(OSError):
                    self._store.end(round)
        return vector

    def tidy(self) -> None:
        """Delete what belongs to no checkpoint, when the run is over."""
        if self._store is not None:
            with suppress(OSError):
                self._store.tidy()

    def _say_lost(self, round: int) -> None:
        log.warning(
            "%s: its state of round %d is not kept here; it goes on without the momentum of earlier rounds",
            self._name,
            round,
            extra=event("state_lost", worker=self._name, round=round),
        )

    def _tell(self, error: OSError) -> None:
        """Say once that the momentum cannot be kept."""
        if not self._told:
            self._told = True
            assert self._folder is not None
            log.warning(
                "the state of %s cannot be kept in %s (%s); after a crash it goes on without it",
                self._name,
                self._folder(self._run) / self._name,
                error.strerror,
                extra=event("state_not_kept", worker=self._name),
            )


def _sync(path: Path) -> None:
    """Wait until a state is on the disk, as of a round that a server can be resumed at."""
    with suppress(OSError), open(path, "rb") as stream:
        files.fsync(stream.fileno())

"""Momentum and deltas of a worker in a user's loop, in memory or on the disk, gone back with the server.

The vector of a round is written down before it is sent. So a worker that was killed, and one whose
server has gone back to a checkpoint, goes on with what it remembered of the round that it is given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from varangian import files
from varangian.protos.contract import Terms
from varangian.structured_logs import event
from varangian.worker.checkpoints.slots import slots_of
from varangian.worker.checkpoints.store import PartStore
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.training.momentum import Momentum

log = logging.getLogger(__name__)


class MomentumMemory:
    """The momentum and the deltas of one worker, for each start of its server.

    Its methods are called one after the other: from the thread of the loop, and while a push is on its way
    from that of the push.

    Args:
        name: of the worker.
        beta: of the momentum; 0 is none.
        folder: from the name of a run to the folder with a subfolder for each worker; None keeps nothing on
            the disk.
        deltas: what makes deltas of vectors; None where vectors are pushed.
    """

    def __init__(
        self,
        name: str,
        beta: float,
        folder: Callable[[str], Path] | None,
        deltas: DeltaEncoder | None = None,
    ) -> None:
        self._name, self.beta, self._folder = name, beta, folder
        self._deltas = deltas
        self._asks = False
        """Whether the server is to say if the last delta counts: it was not told before a start."""
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
            self._restore(None)
        self._run, self._terms, self._asks = run, terms, True
        if self.beta == 0 and self._deltas is None:
            return
        border = min(round, terms.resumed_at) if terms.epoch else round
        if self._folder is None:
            if self._last_round > border:
                self._restore(None)
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
        self._restore(None if found is None else found.tree)
        confirmed = None if found is None else found.label.confirmed
        if self._deltas is not None and confirmed is not None and confirmed < round:
            self._deltas.confirm(self._name, confirmed)
        if found is None and border and (known or terms.resumed_at):
            self._say_lost(border)

    def vector(self, round: int, gradient: Tensor) -> Tensor:
        """The vector of a round, written down; of a round that is there already the same as before.

        Raises:
            DivergedError: the gradient has numbers that must not be sent. Nothing has changed then.
        """
        known = self._momentum.round(self._name)
        vector = self._momentum(self._name, round, lambda: gradient)
        if known != round and self._deltas is None:
            self._put(round)
        return vector

    @property
    def makes_deltas(self) -> bool:
        """Whether deltas are pushed in place of vectors."""
        return self._deltas is not None

    def delta(self, round: int, vector: Tensor) -> Tensor:
        """What is new in the vector of a round, written down; of a round that is there already the same."""
        assert self._deltas is not None
        known = self._deltas.round(self._name)
        delta = self._deltas.encode(self._name, round, vector)
        if known != round:
            self._put(round)
        return delta

    def confirm(self, round: int) -> None:
        """Note that the server has counted the delta of a round: the next one begins there."""
        assert self._deltas is not None
        self._deltas.confirm(self._name, round)
        if self._store is not None:
            try:
                self._store.confirm(round)
            except OSError as error:
                self._tell(error)

    def unconfirmed(self, round: int) -> tuple[int, Tensor] | None:
        """The last delta before a round, and its round, if it is not known whether it counts.

        Asked for once after each start: the delta of a round that this start has refused does not count.
        """
        asks, self._asks = self._asks, False
        found = self._deltas.unconfirmed(self._name) if asks and self._deltas is not None else None
        return found if found is not None and found[0] < round else None

    @property
    def _last_round(self) -> int:
        rounds = [self._momentum.round(self._name)]
        rounds += [] if self._deltas is None else [self._deltas.round(self._name)]
        return max((round for round in rounds if round is not None), default=-1)

    def _restore(self, tree: Any) -> None:
        self._momentum.restore(self._name, None if tree is None else tree["momentum"])
        if self._deltas is not None:
            self._deltas.restore(self._name, None if tree is None else tree["deltas"])

    def _put(self, round: int) -> None:
        """Write down what belongs to a round."""
        if self._store is None:
            return
        try:
            deltas = None if self._deltas is None else self._deltas.state(self._name)
            tree = {"momentum": self._momentum.state(self._name), "deltas": deltas, "attack": None}
            self._store.put(round, tree)
        except OSError as error:
            self._tell(error)
            with suppress(OSError):
                self._store.end(round)

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

"""The queue of an engine: takes batches of tasks of a sweep, says how they are, and cancels them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from varangian.experiments.sweep.engines.batch import Batch


class QueueError(Exception):
    """The engine refuses, or does not answer; the sentence is for the user."""


class QueueFullError(QueueError):
    """The engine takes no more at the moment."""


@dataclass(frozen=True)
class State:
    """How a task is, as the engine says."""

    where: Literal["waiting", "running", "ended"]
    reason: str = ""
    """Why one waits, where that may last; how one has ended, where that was not in order."""
    lost: bool = False
    """Whether it has ended by no fault of its own, as with its node, and may be done again."""


class Queue(Protocol):
    """An engine."""

    @property
    def title(self) -> str:
        """Its name for people."""
        ...

    @property
    def name(self) -> str:
        """Its name on the command line, and in the names of folders."""
        ...

    @property
    def most(self) -> int:
        """Tasks of a batch, at most."""
        ...

    def check(self) -> None:
        """See whether the engine can be used from here, before anything is written.

        Raises:
            QueueError: it cannot; with what to do.
        """
        ...

    def submit(self, batch: Batch, limit: int | None) -> str:
        """Queue the tasks of a batch; returns the handle by which the engine knows it.

        Args:
            batch: whose folder is written.
            limit: of its tasks that may run at the same time.

        Raises:
            QueueFullError: not now.
            QueueError: not at all.
        """
        ...

    def states(self, handle: str) -> Mapping[int, State]:
        """How the tasks of a batch are, by number; one that the engine does not know is not there.

        Raises:
            QueueError: it does not answer at the moment.
        """
        ...

    def cancel(self, handle: str) -> None:
        """End a batch and all of its tasks; nothing happens to one that has ended.

        Raises:
            QueueError: it does not answer.
        """
        ...

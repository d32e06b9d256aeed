"""The buffers of each worker of a process, which do not travel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from varangian.state_file import Tree


class LocalBuffers:
    """The buffers of workers, each of which goes on from those of its last round.

    Args:
        initial: (b,), those that a worker begins with.
    """

    def __init__(self, initial: Tensor) -> None:
        self._initial = initial
        self._kept: dict[str, Tensor] = {}

    def of(self, name: str) -> Tensor:
        """(b,) of a worker; not to be written to."""
        return self._kept.get(name, self._initial)

    def keep(self, name: str, buffers: Tensor) -> None:
        """Keep what a round has left, as a copy."""
        self._kept[name] = buffers.detach().to("cpu", copy=True)

    def state(self, name: str) -> Tree:
        """The history of a worker, for `restore`."""
        return self._kept.get(name)

    def restore(self, name: str, tree: Any) -> None:
        """Put the history of a worker back; None forgets it."""
        self._kept.pop(name, None)
        if tree is not None:
            self._kept[name] = tree

"""Worker momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from varangian.state_file import Tree
from varangian.worker.training.flat import check_finite


@dataclass(frozen=True, eq=False)
class Last:
    """The last vector of a worker."""

    round: int
    vector: Tensor


class Momentum:
    """Momentum m <- beta m + (1 - beta) g of each worker, from m = 0; honest workers send m.

    "Learning from History for Byzantine Robust Optimization" (Karimireddy et al., 2021): averaging over
    rounds narrows the spread of honest vectors, and so the room of an attack that hides in it.

    Args:
        beta: 0 is no momentum.
        once: whether a gradient may be asked for only once a round, so that the vector of the round is kept
            without momentum, too.
        buffers: how many numbers at the end of a vector are no gradient, and have no momentum.
    """

    def __init__(self, beta: float, once: bool = False, buffers: int = 0) -> None:
        self._beta, self._buffers = beta, buffers
        self._kept = beta > 0 or once
        self._last: dict[str, Last] = {}

    def __call__(self, name: str, round: int, gradient: Callable[[], Tensor]) -> Tensor:
        """The vector of a worker in a round; must not be written to.

        A round that is asked for again gives the same vector and changes nothing, so that a push can be
        repeated. Where nothing is kept, rounds may come in any order.

        Raises:
            DivergedError: the gradient is not finite. The momentum stays what it was.
        """
        last = self._last.get(name)
        if last is not None and (round == last.round or (round < last.round and self._kept)):
            return repeat(last, name, round)
        found = gradient()
        vector = (1 - self._beta) * found
        if last is not None and self._beta > 0:
            vector.add_(last.vector, alpha=self._beta)
        if self._buffers:
            vector[-self._buffers :] = found[-self._buffers :]
        check_finite(vector)
        self._last[name] = Last(round, vector)
        return vector

    def round(self, name: str) -> int | None:
        """The round of the last vector of a worker; None where the next one does not depend on it."""
        last = self._last.get(name) if self._kept else None
        return None if last is None else last.round

    def state(self, name: str) -> Tree:
        """The history of a worker, for `restore`; its tensors are not copied, and never written to."""
        last = self._last.get(name) if self._kept else None
        return None if last is None else {"round": last.round, "vector": last.vector}

    def restore(self, name: str, tree: Any) -> None:
        """Put the history of a worker back; None forgets it."""
        self._last.pop(name, None)
        if tree is not None:
            self._last[name] = Last(tree["round"], tree["vector"])


def repeat(last: Last, name: str, round: int) -> Tensor:
    if round < last.round:
        raise ValueError(f"Rounds should not go back. Found round {round} of {name} after {last.round}.")
    return last.vector

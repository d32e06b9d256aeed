"""Rows of fragments: a round brings a part of the parameters, and the rule weighs workers by all of them.

K = K_0 + ... + K_{P-1}, where K_p are the inner products of the rows of fragment p when it was there last.
A rule on inner products gets K in place of those of the fragment at hand, and its weights combine the rows
of this one: so a worker that is honest in all fragments but one is judged by the whole model. Rules on
single columns see what they see anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from varangian.aggregators.kernels import backend_for
from varangian.aggregators.rows import Rows
from varangian.protos.layout import Fragments
from varangian.server.protocol.events import Close, Worker
from varangian.server.rows.source import Pushed, StepInput
from varangian.server.training.learner import Measure

ANYBODY = ""
"""The last row and column of inner products, which are those of the reference; no worker has this name."""


class Fragmented(Pushed):
    """The pushed parts, with inner products over the latest parts of all fragments.

    A worker of whom nothing was there the last time that a fragment was has no products of it. It is then
    taken to have been there in a direction of its own, as far from the mean as the farthest row: to stay
    away in a fragment brings it no nearer to the others than that row is.
    """

    remembers: ClassVar[bool] = False
    fixed: ClassVar[str] = ""

    def __init__(self, fragments: Fragments) -> None:
        self.fragments = fragments
        self._latest: dict[int, tuple[tuple[Worker, ...], Tensor]] = {}
        """Of each fragment the workers whose rows were there, and their inner products, (n+1, n+1)."""

    def step_input(self, close: Close, rows: Mapping[Worker, Tensor]) -> StepInput:
        numel = self.fragments.numels[self.fragments.of(close.round)]
        parts = {worker: row[:numel] for worker, row in rows.items()}
        measure = self.measure(close.round, parts)
        return StepInput(parts, measure=measure, ages=close.ages or None, earlier=self.state())

    def measure(self, round: int, parts: Mapping[Worker, Tensor]) -> Measure:
        """Measures the rows (numel,) of the fragment of a round, which are its latest from then on."""
        fragment, workers = self.fragments.of(round), tuple(sorted(parts))

        def measure(reference: Tensor | None) -> Tensor:
            stacked = Rows.of([parts[worker] for worker in workers])
            products = backend_for(stacked).gram(stacked, reference)
            self._latest[fragment] = (workers, products)
            others = [latest for other, latest in sorted(self._latest.items()) if other != fragment]
            return sum((_among(workers, *latest) for latest in others), start=products)

        return measure

    def forget(self, worker: Worker) -> None:
        self.change([one for one in self._known() if one != worker], 0)

    def change(self, workers: Sequence[Worker], participants: int) -> None:
        for fragment, (known, products) in [*self._latest.items()]:
            kept = [place for place, worker in enumerate(known) if worker in workers]
            if not kept:
                del self._latest[fragment]
            elif len(kept) < len(known):
                places = torch.tensor([*kept, len(known)])
                names = tuple(known[place] for place in kept)
                self._latest[fragment] = (names, products[places][:, places])

    def agrees(self, later: Fragmented, changed: Collection[int]) -> bool:
        """Whether inner products that are kept some rounds later are the same.

        Args:
            later: has fewer workers, where some are gone.
            changed: fragments of the rounds between.
        """
        for fragment, (workers, products) in later._latest.items():
            before, theirs = self._latest.get(fragment, ((), products))
            unknown = fragment in changed or not {*workers} <= {*before}
            if not unknown and not torch.equal(_among(workers, before, theirs), products):
                return False
        return True

    def _known(self) -> set[Worker]:
        return {worker for workers, _ in self._latest.values() for worker in workers}

    def state(self) -> dict[str, Any]:
        return {
            str(fragment): {"workers": [*workers], "products": products}
            for fragment, (workers, products) in self._latest.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._latest = {
            int(fragment): (tuple(kept["workers"]), kept["products"].clone())
            for fragment, kept in state.items()
        }


def _among(workers: Sequence[Worker], known: Sequence[Worker], products: Tensor) -> Tensor:
    """The inner products of a fragment for these workers and the reference: (n+1, n+1)."""
    n, m = len(workers), len(known)
    places = {worker: place for place, worker in enumerate(known)} | {ANYBODY: m}
    # Each point as a combination of those there, and of a direction of its own for one that was not.
    combined = torch.zeros(n + 1, m + 1, dtype=torch.float64)
    missing = torch.zeros(n + 1, dtype=torch.float64)
    for i, worker in enumerate((*workers, ANYBODY)):
        if (place := places.get(worker)) is None:
            combined[i, :m] = 1 / m
            missing[i] = 1
        else:
            combined[i, place] = 1
    if not bool(missing.any()):
        order = torch.tensor([places[worker] for worker in (*workers, ANYBODY)])
        return products[order][:, order]
    rows = products[:m, :m]
    mean = rows.mean(dim=1)
    farthest = float((rows.diagonal() - 2 * mean + rows.mean()).amax().clamp(min=0))
    return combined @ products @ combined.T + torch.diag(missing * farthest)

"""Ranks whose gradients point against those of the others, step after step, as with a flipped sign.

Length says nothing of such a rank, and where batches are small one step says little: gradients of honest
ranks are then nearly at right angles to each other, and any of them points against the others by chance. So
evidence is added up over steps, weighted by how much the other ranks agree among themselves.

n  ranks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CERTAIN = 5.0
"""Standard deviations of the evidence from which on a rank is opposed to the others."""
LEAST = 3
"""Steps with evidence that it takes at the least."""
FORGET = 0.98
"""What is left of evidence after each step."""
SMOOTH = 0.95
"""What is left of the noise of earlier steps after each, and of how much ranks agreed in them."""
SURE = 2.0
"""Standard errors by which the others have to agree among themselves."""


class Opposition:
    """Adds up, for each rank, how much more its gradient points against the others than with them.

    With u_j for gradients of length 1, a rank i agrees with the others by a = mean of <u_i, u_j>, and they
    among themselves by A = mean of <u_j, u_k>. An honest rank has a = A on average, one with a flipped sign
    a = -A, and one whose data has nothing to do with that of the others a = 0. So a + A/2 is added up: it
    is negative for the second alone where A is positive, and steps count by how far A surely is above 0, on
    average over the last ones. The sum is measured by its standard deviation, from how a varies over the
    other ranks.

    Args:
        n: ranks.
        momentum: beta of the momenta that are compared, whose noise lasts for several steps.
    """

    def __init__(self, n: int, momentum: float = 0.0) -> None:
        self._n, self._momentum = n, momentum
        self._lasting = (1 + momentum**2) / (1 - momentum**2)
        """Variance of a sum over steps, over that of independent ones."""
        self._sums, self._variances, self._counts = np.zeros(n), np.zeros(n), np.zeros(n)
        self._among = np.zeros((2, n))
        """Sums of A and of its squares over steps, smoothed."""
        self._noise = np.zeros(n)
        """Sum of the variances of a over the other ranks, smoothed."""
        self._seen = np.zeros((2, n))
        """Sums of the weights of steps in these, and of their squares."""

    def see(self, products: Array) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """What a step says.

        Args:
            products: inner products of all gradients, (n, n); NaN in the rows of those that are not finite.

        Returns:
            How much each rank agrees with the others, NaN for one without a direction; and the ranks that
            have been opposed to the others for long enough to be certain of it.
        """
        found = np.full(self._n, np.nan)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            lengths = np.sqrt(np.diagonal(products))  # the square of a zero vector may be rounded below 0
            cosines = products / lengths[:, None] / lengths
        there = np.flatnonzero(np.isfinite(np.diagonal(cosines)))
        m = len(there)
        if m > 1:
            cosines = cosines[np.ix_(there, there)]
            sums = cosines.sum(1) - np.diagonal(cosines)
            found[there] = sums / (m - 1)
        if m > 2:
            self._add(there, found[there])
        return tuple(found.tolist()), tuple(sorted(self.certain()))

    def _add(self, there: Array, agreement: Array) -> None:
        """Evidence of a step for the ranks that are there, m of them."""
        m = len(there)
        total = agreement.sum()
        among = (total - 2 * agreement) / (m - 2)
        others = (total - agreement) / (m - 1)
        squares = (agreement**2).sum() - agreement**2 - (m - 1) * others**2
        # Agreements share pairs of ranks: alone, each varies more than they do about their mean.
        noise = np.maximum(squares, 0.0) / (m - 2) * (m - 1) / (m - 2)
        smoothed = [(self._among[0], among), (self._among[1], among**2), (self._noise, noise)]
        for kept, new in [*smoothed, (self._seen[0], 1.0)]:
            kept[there] = SMOOTH * kept[there] + new
        self._seen[1, there] = SMOOTH**2 * self._seen[1, there] + 1
        steps, squared = self._seen[:, there]
        mean = self._among[0, there] / steps
        shares = squared / steps**2
        spread = np.maximum(self._among[1, there] / steps - mean**2, 0.0) / np.maximum(1 - shares, 1e-9)
        sure = np.maximum(mean - SURE * np.sqrt(spread * shares * self._lasting), 0.0)
        sure[shares > 0.9] = 0.0  # a single step
        self._sums[there] = FORGET * self._sums[there] + sure * (agreement + among / 2)
        variance = self._noise[there] / steps * self._lasting
        self._variances[there] = FORGET**2 * self._variances[there] + sure**2 * variance
        self._counts[there] += sure > 0
        over = self._sums >= 0
        self._sums[over], self._variances[over], self._counts[over] = 0.0, 0.0, 0.0

    def certain(self) -> list[int]:
        """The ranks that have been opposed to the others for long enough, the most certain first."""
        deviations = self.deviations()
        enough = np.flatnonzero((self._counts >= LEAST) & (deviations > CERTAIN)).tolist()
        return sorted(enough, key=lambda rank: -float(deviations[rank]))

    def deviations(self) -> Array:
        """How many standard deviations the evidence against each rank amounts to, (n,)."""
        t = np.divide(
            -self._sums, np.sqrt(self._variances), out=np.zeros(self._n), where=self._variances > 0
        )
        # A variance that is estimated from few values makes tails long: those of Student's distribution,
        # from which this normal deviate is that of the same probability (Wallace, 1959).
        freedom = np.maximum(self._n - 2, 1) * self._seen[0] ** 2 / np.maximum(self._seen[1], 1)
        freedom = np.maximum(freedom / self._lasting, 1.0)
        found: Array = (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t**2 / freedom))
        return found

    def moved(self, places: Sequence[int | None]) -> Opposition:
        """The same of ranks that have other places now: where each was before, None for a new one."""
        found = Opposition(len(places), self._momentum)
        known = [(now, before) for now, before in enumerate(places) if before is not None]
        for name, value in found._parts().items():
            for now, before in known:
                value[..., now] = self._parts()[name][..., before]
        return found

    def state(self) -> dict[str, list[float]]:
        """What `restore` takes: plain numbers."""
        return {name: value.ravel().tolist() for name, value in self._parts().items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from these; of another number of ranks it begins again."""
        for name, value in self._parts().items():
            if len(state.get(name, ())) == value.size:
                value[...] = np.array(state[name], dtype=np.float64).reshape(value.shape)

    def _parts(self) -> dict[str, Array]:
        names = ("sums", "variances", "counts", "among", "noise", "seen")
        return {name: getattr(self, f"_{name}") for name in names}

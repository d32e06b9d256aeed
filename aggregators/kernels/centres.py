"""Gram matrix without cancellation: each slice of the rows is centred before it is multiplied.

    n  rows     r  the reference, or zero     b  inner products of (z_1, ..., z_n, r), (n+1, n+1)

z_i is x_i - x_p for the parent p of row i, or x_i - r where it has none (-1). Parents form a forest, so
every difference of rows is a sum of some z with signs. Where rows share a part that is long beside their
distances, one of them becomes the parent of the others; where two of those are closer still, one may become
the parent of the other. The products themselves show which rows these are, so no second pass over memory is
needed: only the first columns of a slice, or a slice with rows of two kinds, are multiplied again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators.numeric.algebra import Array, product
from varangian.aggregators.rows import Rows

Parents = NDArray[np.int32]

KEPT = 0.1
"""Squared distance, over the sum of the squares that it is the difference of, that float32 products still
keep to about 1e-5."""
CLUSTERS = 3
"""Most parents of a slice where those of many slices are chosen at once."""
ROUNDS = 6
"""Most times that parents are chosen for one slice; once is usual where there is a common part."""


@dataclass
class Sums:
    """Sums of inner products over the columns so far."""

    plain: Tensor
    """Of (x_1 - r, ..., x_n - r, r), over the slices where no row has a parent: (n+1, n+1) float64 on the
    device of the rows."""
    moved: dict[bytes, Array] = field(default_factory=dict[bytes, Array])
    """Of (z_1, ..., z_n, r), over the slices with these parents."""
    alone: bool = True
    """Whether the sum of a pair depends on no other row."""
    device: Tensor | None = None
    """The inner products of (x_1 - c, ..., x_n - c, r - c, -c), where a device makes them: (n+2, n+2)."""
    lost: Tensor | None = None
    """Whether distances were lost in them, as the device says."""

    @classmethod
    def nothing(cls, rows: Rows) -> Sums:
        n = len(rows)
        return cls(torch.zeros(n + 1, n + 1, dtype=torch.float64, device=rows.device))

    def add(self, b: Array, parents: Parents) -> None:
        """The products (n+1, n+1) of one slice whose rows have these parents."""
        if (parents < 0).all():
            self.plain += torch.from_numpy(b).to(self.plain.device)
            return
        self.alone = False
        before = self.moved.get(parents.tobytes())
        self.moved[parents.tobytes()] = b if before is None else before + b

    def on_device(self, n: int) -> Tensor:
        """The sums on the device, (n+2, n+2)."""
        if self.device is None:
            self.device = torch.zeros(n + 2, n + 2, dtype=torch.float64, device=self.plain.device)
        return self.device

    def among(self, rows: Sequence[int]) -> Sums:
        """The sums of some of the rows, where the sum of a pair depends on no other row."""
        index = [*rows, -1]
        return Sums(self.plain[index][:, index])

    def products(self) -> Tensor:
        """Products of (x_1 - c, ..., x_n - c, r - c, -c), with a centre c for each slice: (n+2, n+2)."""
        plain, n = self.plain.cpu().numpy(), len(self.plain) - 1
        found = np.zeros((n + 2, n + 2))
        found[:n, :n] = plain[:n, :n]
        found[:n, -1] = found[-1, :n] = -plain[:n, n]
        found[-1, -1] = plain[n, n]
        if self.device is not None:
            found += self.device.cpu().numpy()
        for parents, b in self.moved.items():
            found += _about_centre(b, np.frombuffer(parents, dtype=np.int32))
        return torch.from_numpy(found)


def none(n: int) -> Parents:
    return np.full(n, -1, dtype=np.int32)


def keep_distances(
    measure: Callable[[Parents], Array], parents: Parents, first: Array | None = None
) -> tuple[Array, Parents]:
    """Products (n+1, n+1) about parents that keep all distances, as far as possible, and these parents.

    `measure` returns the products for given parents; `first` are those for `parents`, if they are known.
    """
    b = measure(parents) if first is None else first
    for _ in range(ROUNDS):
        gone = lost(b, parents)
        better = refine(b, parents, gone) if gone.any() else parents
        if np.array_equal(better, parents):
            break
        parents = better
        b = measure(parents)
    return b, parents


def lost(b: Array, parents: Parents) -> NDArray[np.bool_]:
    """Which finite distances of (x_1, ..., x_n, r) have lost too many bits: (n+1, n+1) bool."""
    squares, scale = _distances(b, parents)
    with np.errstate(invalid="ignore"):
        gone: NDArray[np.bool_] = squares < KEPT * scale
    np.fill_diagonal(gone, False)
    return gone


def refine(b: Array, parents: Parents, gone: NDArray[np.bool_]) -> Parents:
    """Better parents for the rows whose distances are lost: (n,).

    The row with the most lost distances, of several the nearest to the rows concerned, becomes the parent
    of them all; then the next one among the rows that are left. The reference takes part as a row without a
    parent: rows that are nearer to it than to their parent are measured from it again.
    """
    squares, _ = _distances(b, parents)
    better, left, r = parents.copy(), gone.copy(), len(parents)
    while left.any():
        counts = left.sum(axis=1)
        with np.errstate(invalid="ignore"):
            sums = np.where(left, squares, 0).sum(axis=1)
        best = int(np.where(counts == counts.max(), sums, np.inf).argmin())
        near = left[best].nonzero()[0]
        if best < r and left[best, r]:
            better[best] = -1
        own = [] if best == r else _ancestors(best, better)
        better[[j for j in near if j != r and j not in own]] = -1 if best == r else best
        done = [best, *near]
        left[done] = False
        left[:, done] = False
    return better


def choose_parents(b: Tensor) -> Tensor:
    """Parents for s slices at once, where no row has one yet: (s, n+1, n+1) -> (s, n) int32.

    As `refine`, for up to CLUSTERS groups of rows that are near each other.
    """
    n = b.shape[1] - 1
    inner = b[:, :n, :n]
    lengths = inner.diagonal(dim1=1, dim2=2)
    scale = lengths[:, :, None] + lengths[:, None, :]
    squares = scale - 2 * inner
    left = (squares < KEPT * scale) & ~torch.eye(n, dtype=torch.bool, device=b.device)
    parents = torch.full((len(b), n), -1, dtype=torch.int32, device=b.device)
    slices = torch.arange(len(b), device=b.device)
    for _ in range(min(CLUSTERS, n - 1)):
        counts = left.sum(dim=2)
        sums = torch.where(left, squares, 0).sum(dim=2)
        best = torch.where(counts == counts.amax(dim=1, keepdim=True), sums, torch.inf).argmin(dim=1)
        near = left[slices, best]
        parents = torch.where(near, best[:, None].int(), parents)
        done = near.clone()
        done[slices, best] = True
        left &= ~(done[:, :, None] | done[:, None, :])
    return parents


def about_parents(b: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
    """Products of every slice about a centre, and whether distances are lost in one; on the rows' device.

    From those of (z_1, ..., z_n, r), (s, n+1, n+1), no parent having one, to (x_1 - c, ..., x_n - c, r - c,
    -c) for c the parent of most rows, (s, n+2, n+2).
    """
    n = parents.shape[1]
    nodes = torch.arange(n, device=b.device)
    chosen = parents[:, :, None] == nodes
    paths = torch.zeros(len(b), n + 2, n + 1, dtype=torch.float64, device=b.device)
    paths[:, :n, :n] = (chosen | (nodes[:, None] == nodes)).double()
    paths[:, n + 1, n] = -1
    sound = b.diagonal(dim1=1, dim2=2).isfinite()
    clean = torch.where(sound[:, :, None] & sound[:, None, :], b, 0)
    inner = (paths @ clean @ paths.transpose(1, 2))[:, : n + 1, : n + 1]
    shared = ((paths * clean.diagonal(dim1=1, dim2=2)[:, None, :]) @ paths.transpose(1, 2))[
        :, : n + 1, : n + 1
    ]
    squares, sums = inner.diagonal(dim1=1, dim2=2), shared.diagonal(dim1=1, dim2=2)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * inner
    scale = sums[:, :, None] + sums[:, None, :] - 2 * shared
    # Between rows that are equal nothing is left but rounding of float64.
    rounding = 1e-12 * (sums[:, :, None] + sums[:, None, :])
    lost = ((distances < KEPT * scale) & (distances.abs() > rounding)).any()
    counts = chosen.sum(dim=1)
    centre = paths[torch.arange(len(b), device=b.device), counts.argmax(dim=1)]
    centre = torch.where(counts.amax(dim=1)[:, None] > 0, centre, 0)
    found = (paths - centre[:, None]) @ clean @ (paths - centre[:, None]).transpose(1, 2)
    bad = ~sound[:, :n]
    unsound = torch.zeros(len(b), n + 2, dtype=torch.bool, device=b.device)
    unsound[:, :n] = bad
    return torch.where(unsound[:, :, None] | unsound[:, None, :], torch.nan, found), lost


def about_reference(products: Tensor) -> Tensor:
    """From products of (x_1 - c, ..., x_n - c, r - c, -c) to those of (x_1 - r, ..., x_n - r, r)."""
    n = len(products) - 2
    towards, origin = products[:, n], products[:, -1]
    found = torch.empty(n + 1, n + 1, dtype=torch.float64, device="cpu")
    found[:n, :n] = products[:n, :n] - (towards[:n, None] + towards[:n]) + towards[n]
    found[:n, n] = (towards[:n] - origin[:n]) - (towards[n] - origin[n])
    found[n, :n] = found[:n, n]
    found[n, n] = towards[n] - 2 * towards[-1] + origin[-1]
    return found


def squares_about_reference(products: Array) -> Array:
    """The diagonal of `about_reference`, (n+1,)."""
    towards, last = products[:-1, -2], products[-1, -1]
    squares: Array = products.diagonal()[:-1] - 2 * towards + towards[-1]
    squares[-1] = towards[-1] - 2 * products[-1, -2] + last
    return squares


def _ancestors(row: int, parents: Parents) -> list[int]:
    """The row, its parent, its parent's parent, and so on."""
    found = [row]
    while parents[found[-1]] >= 0:
        found.append(int(parents[found[-1]]))
    return found


def _paths(parents: Parents) -> Array:
    """The z whose sum is x_i - r, and r - r: (n+1, n) of zeros and ones."""
    n = len(parents)
    paths = np.zeros((n + 1, n))
    for i in range(n):
        paths[i, _ancestors(i, parents)] = 1
    return paths


def _distances(b: Array, parents: Parents) -> tuple[Array, Array]:
    """Squared distances of (x_1, ..., x_n, r), and the sums of squares that make each, (n+1, n+1)."""
    n = len(parents)
    if (parents < 0).all():
        inner = np.zeros((n + 1, n + 1))
        inner[:n, :n] = b[:n, :n]
        squares = inner.diagonal()
        scale = squares[:, None] + squares
        with np.errstate(invalid="ignore"):
            return scale - 2 * inner, scale
    # A row that is not finite must not affect the others, as 0 times infinity would.
    sound = np.isfinite(b.diagonal()[:n])
    inner = np.where(sound[:, None] & sound, b[:n, :n], 0)
    paths, lengths = _paths(parents), inner.diagonal()
    shared = product(paths * lengths, paths.T)
    inner = product(product(paths, inner), paths.T)
    squares, sums = inner.diagonal(), shared.diagonal()
    distances, scale = squares[:, None] + squares - 2 * inner, sums[:, None] + sums - 2 * shared
    distances[:n][~sound] = distances[:, :n][:, ~sound] = np.inf
    return distances, scale


def _about_centre(b: Array, parents: Parents) -> Array:
    """Products of (x_1 - c, ..., x_n - c, r - c, -c), for c the row that is nearest to most: (n+2, n+2)."""
    n = len(parents)
    paths, squares = _paths(parents), _distances(b, parents)[0][:n, :n]
    centre = paths[int(np.sort(squares, axis=1)[:, n // 2].argmin())]
    places = np.zeros((n + 2, n + 1))
    places[: n + 1, :n] = paths - centre
    places[n + 1, :n] = -centre
    places[n + 1, n] = -1
    sound = np.isfinite(b.diagonal())
    found: Array = product(product(places, np.where(sound[:, None] & sound, b, 0)), places.T)
    bad = np.flatnonzero(~sound[:n])
    found[bad] = found[:, bad] = np.nan
    return found

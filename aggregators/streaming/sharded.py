"""The update from rows whose columns lie in several places: each measures its own, and all decide the same.

A place holds some columns of all n rows. The inner products of rows are sums over columns, so those of all
places are added up; then any place that has the sum finds the same weights or combinations, and applies
them to the columns that it holds. No place ever holds whole rows.

n  rows     m  rows that are left     b  columns of one place
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from varangian.aggregators import answers
from varangian.aggregators.base import (
    Columnwise,
    Weighting,
    is_columnwise,
    is_explained,
    is_ordered,
    is_selecting,
    is_whole,
)
from varangian.aggregators.gram import DOUBLE, Gram
from varangian.aggregators.kernels import Backend, NotFinite, after, backend_for, unscreened
from varangian.aggregators.numeric.weighted_order import WeightedOrder
from varangian.aggregators.pipeline import (
    CONVEX,
    Aggregator,
    Weights,
    columns_by,
    on_rows,
    rows_of_points,
    shares_of,
    single_rows,
)
from varangian.aggregators.rows import Rows
from varangian.aggregators.streaming.stream import streams
from varangian.own_classes import is_own, shown


def refuses(aggregator: Aggregator) -> str | None:
    """Why the aggregator cannot be applied to columns in several places; None where it can."""
    if is_whole(aggregator.rule):
        return (
            f"{shown(aggregator.rule)} computes the update from whole rows, which are nowhere in one place"
        )
    if aggregator.splits:
        return (
            "per_block needs the weights of each parameter tensor, and here there are those of whole rows"
        )
    return None


@dataclass(frozen=True, eq=False)
class Measured:
    """What one place knows of the rows; the sums over all places are what `decide` takes."""

    products: Tensor
    """Inner products of (x_1 - c, ..., x_n - c, r - c, -c) for some centre c, over the columns of this
    place: (n+2, n+2) float64. Zeros for a row that is not finite here, and where no rule asks for them."""
    invalid: Tensor
    """1 for a row that is not finite in these columns, else 0: (n,) float64."""

    @classmethod
    def nothing(cls, n: int) -> Measured:
        """Of no columns."""
        return cls(
            torch.zeros(n + 2, n + 2, dtype=torch.float64, device="cpu"),
            torch.zeros(n, dtype=torch.float64, device="cpu"),
        )

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.products + other.products, self.invalid + other.invalid)


def measure(
    aggregator: Aggregator, rows: Rows, reference: Tensor | None = None, *, directions: bool = False
) -> Measured:
    """The columns of one place, of all n rows.

    Args:
        aggregator: whose decision is to be made; where it needs no geometry rows are only screened.
        rows: these columns of all rows.
        reference: the same columns of the reference, finite; zero if None.
        directions: measure inner products also where the aggregator needs none.
    """
    n, needed = len(rows), directions or not streams(aggregator, len(rows))
    chosen = backend_for(rows, aggregator.backend)
    found = Measured.nothing(n)
    if needed and unscreened(chosen, rows, described=False):
        with suppress(NotFinite):
            return Measured(_products(aggregator, rows, reference, chosen), found.invalid)
    finite, subnormal = chosen.screen(rows)
    kept = finite.nonzero().flatten().tolist()
    found.invalid[~finite] = 1
    if needed and kept:
        clean = rows.keep(kept).flushed(subnormal[kept])
        try:
            products = _products(aggregator, clean, reference, chosen)
        except NotFinite:
            products = _products(aggregator, clean, reference, after(chosen, clean))
        places = torch.tensor([*kept, n, n + 1], device="cpu")
        found.products[places[:, None], places] = products
    return found


def _products(aggregator: Aggregator, rows: Rows, reference: Tensor | None, backend: Backend) -> Tensor:
    if getattr(aggregator.rule, "from_origin", False):
        return Gram.from_origin(rows, reference).basis.products
    return backend.centred(rows, reference).cpu()


@dataclass(frozen=True, eq=False)
class Decision:
    """What is to become of every column: the same wherever it is made."""

    rule: Columnwise | Weighting
    n: int
    kept: tuple[int, ...]
    """Rows that take part."""
    coords: Tensor | None
    """Coefficients of (x_1, ..., x_m, r): (m+1,) of a weighting, (k, m+1) of the points that a columnwise
    rule sees; None where it sees the rows themselves."""
    backend: str | None = None
    weights: Tensor | None = None
    """(n,) float64: the coefficient of each row in the update; None for a columnwise rule."""
    distances: Tensor | None = None
    """(n,) float64: of each row from the update, NaN for one that was dropped; None where it was not
    measured."""
    spread: float | None = None
    """Mean squared distance of the rows that took part from the update; None where it was not measured."""
    details: Mapping[str, Tensor] | None = None
    """Further values of the rule for each row, as those of an aggregate."""

    @property
    def dropped(self) -> tuple[int, ...]:
        """Rows that are not finite in some place."""
        return tuple(sorted({*range(self.n)} - {*self.kept}))

    @property
    def reference_weight(self) -> float:
        """The coefficient of the reference in the update."""
        return 0.0 if self.weights is None or self.coords is None else float(self.coords[-1])

    @property
    def certain(self) -> bool:
        """Whether the update is finite and comes out in every place."""
        convex = self.weights is None or self.coords is None or float(self.coords.abs().sum()) <= CONVEX
        return convex and not is_own(self.rule)

    def apply(self, rows: Rows, reference: Tensor | None = None) -> Tensor:
        """The update in the columns of one place: (b,).

        Args:
            rows: these columns of all n rows.
            reference: as for `measure`.

        Raises:
            PartError: a rule of the user failed.
        """
        for left, backend in self._attempts(rows):
            with suppress(NotFinite):
                return self._applied(left, reference, backend)
        raise AssertionError("the last backend takes all finite rows")

    def _attempts(self, rows: Rows) -> Iterator[tuple[Rows, Backend]]:
        """As those of an aggregator: unscreened where that is safe, else with subnormal numbers flushed."""
        left = rows.keep(self.kept)
        chosen = backend_for(left, self.backend)
        described = (
            self.coords is None and is_ordered(self.rule) and not isinstance(self.rule, WeightedOrder)
        )
        if len(left) == self.n and unscreened(chosen, left, described):
            yield left, chosen
        clean = left.flushed(chosen.screen(left)[1])
        yield clean, chosen
        other = after(chosen, clean)
        yield clean, other
        yield clean, after(other, clean)

    def _applied(self, rows: Rows, reference: Tensor | None, backend: Backend) -> Tensor:
        coords = self.coords
        if not is_columnwise(self.rule):
            assert coords is not None
            return backend.combine(coords[None], rows, reference)[0]
        if coords is not None and (chosen := rows_of_points(coords)):  # then nothing need be multiplied
            rows, coords = Rows(tuple(rows.vectors[i] for i in chosen)), None
        points = len(rows) if coords is None else len(coords)
        by = self.rule.order(points) if is_ordered(self.rule) else answers.column_reduction(self.rule)
        return backend.columnwise(by, coords, rows, reference)


def decide(
    aggregator: Aggregator,
    measured: Measured,
    rng: torch.Generator,
    *,
    precision: float = DOUBLE,
    weights: Weights | None = None,
) -> Decision:
    """The decision for all places, from the sum of what they measured.

    Args:
        aggregator: one that `refuses` takes.
        measured: the sum over all places, each once.
        rng: randomness of the mixings; the same state in every place.
        precision: rounding of the products, the worst of `precision_of` the rows of all places.
        weights: of the rows, (n,), where not all weigh the same.

    Raises:
        AggregationError: too few rows are left for the guarantee, or more are invalid than may be
            Byzantine; or a rule of the user failed.
    """
    n = len(measured.invalid)
    kept = tuple((measured.invalid == 0).nonzero().flatten().tolist())
    shares = shares_of(weights, n)
    if shares is not None:
        shares = shares.keeping(kept)
    now = aggregator.among(kept, n - len(kept), shares)
    places = torch.tensor([*kept, n, n + 1], device="cpu")
    products = measured.products[places[:, None], places]
    points = start = Gram.about(lambda: products, len(kept), precision).weighted(shares)
    for mixing in now.mix:
        points = points.mixed(answers.mixed(mixing, points, rng))
    rule: Any = now.rule
    if is_selecting(rule):
        points = points.mixed(answers.selected(rule, points))
    if is_columnwise(rule):
        coords = None if points is start else on_rows(points.coords)
        return Decision(columns_by(rule, shares), n, kept, coords, aggregator.backend)
    return _weighed(cast("Weighting", rule), points, start, n, kept, aggregator.backend)


def _weighed(
    rule: Weighting, points: Gram, start: Gram, n: int, kept: Sequence[int], backend: str | None
) -> Decision:
    place = points.combination(answers.weights(rule, points))
    coords = on_rows(place)
    asked: Any = rule
    said = answers.explanation(asked, points) if is_explained(asked) else {}
    single, rows = single_rows(points.coords)
    blank = torch.full((len(kept),), torch.nan, dtype=torch.float64, device="cpu")
    placed = _placing(n, kept)
    distances = None
    if start.basis.measured:
        distances = placed(start.sqdist_to(coords[:-1] if not coords[-1] else coords).sqrt(), torch.nan)
    return Decision(
        rule,
        n,
        tuple(kept),
        coords,
        backend,
        weights=placed(coords[:-1], 0.0),
        distances=distances,
        spread=start.spread(place),
        details={
            name: placed(blank.index_copy(0, rows, values[single].double()), torch.nan)
            for name, values in said.items()
            if len(rows)
        },
    )


def _placing(n: int, kept: Sequence[int]) -> Callable[[Tensor, float], Tensor]:
    """A function that puts values of the rows that are left at their places among all."""

    def placed(values: Tensor, of_dropped: float) -> Tensor:
        out = torch.full((n,), of_dropped, dtype=torch.float64, device="cpu")
        out[[*kept]] = values.double()
        return out

    return placed

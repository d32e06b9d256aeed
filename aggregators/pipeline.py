"""The aggregator: screening, one Gram matrix, mixings, a rule, and one combination of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators import answers, base
from varangian.aggregators.base import (
    Aggregate,
    Columnwise,
    Conserving,
    Mixing,
    Part,
    Resilient,
    WeightedConserving,
    WeightedResilient,
    Weighting,
    Whole,
    among,
    by_place,
    check_f,
    in_place,
    is_columnar,
    is_columnwise,
    is_explained,
    is_naming,
    is_ordered,
    is_selecting,
    is_whole,
    spent,
    tolerance,
)
from varangian.aggregators.blocks import aggregate_blocks, columns_of
from varangian.aggregators.errors import AggregationError, PartError
from varangian.aggregators.gram import Gram, precision_of
from varangian.aggregators.kernels import Backend, BackendRefused, NotFinite, after, backend_for, unscreened
from varangian.aggregators.kernels import reference as exact
from varangian.aggregators.numeric.order import Window
from varangian.aggregators.numeric.shares import Shares, SharesError
from varangian.aggregators.rows import Rows, RowsError, tensor_of
from varangian.own_classes import shown

CONVEX = 1 + 1e-9
"""Sum of the magnitudes of coefficients up to which a combination of finite rows is finite."""
MODERATE = 1e60
"""Squared distances from a centre up to which float32 has room for sums of rows."""
WIDENED = 1 << 18
"""Columns that are converted to a wider type at once."""
_UNUSED = torch.Generator()
"""The generator where there is no mixing, hence no randomness."""


@dataclass(frozen=True)
class Aggregator:
    """A rule behind any number of mixings.

    `Aggregator(Krum(f=3), mix=(NNM(f=3),))(rows).vector` is the update.
    """

    rule: Weighting | Columnwise | Whole
    mix: tuple[Mixing, ...] = ()
    f: int | None = None
    """The number of rows that may be Byzantine; by default the largest f that a part was told."""
    backend: str | None = field(default=None, kw_only=True)
    """Kernels to insist on; by default the fastest that takes the rows."""
    per_block: bool = field(default=False, kw_only=True)
    """Whether mixings and rule are applied to each parameter tensor of the model by itself (`blocks`)."""

    def __post_init__(self) -> None:
        for part in (self.rule, *self.mix):
            if isinstance(part, str):
                raise AggregationError(
                    f"An aggregator is made of objects, as Aggregator(Krum(f=1)). Found {part!r}: of names "
                    f'aggregator_from("nnm+krum", "aggregator", f=1) makes one.'
                )
        object.__setattr__(self, "mix", tuple(self.mix))
        for f in (self.f, *(getattr(part, "f", None) for part in (*self.mix, self.rule))):
            if f is not None:
                check_f(f)

    @property
    def tolerance(self) -> int | None:
        """The declared f; None when neither the aggregator nor a part of it was told one."""
        if self.f is not None:
            return self.f
        told = [f for f in map(tolerance, (*self.mix, self.rule)) if f is not None]
        return max(told, default=None)

    @property
    def robust(self) -> bool:
        """Whether the rule has a guarantee against Byzantine rows; the mean has none."""
        return base.robust(self.rule)

    @property
    def splits(self) -> bool:
        """Whether blocks are aggregated one by one; to a coordinate-wise rule alone it is all the same."""
        columnwise = is_columnwise(self.rule) and not is_selecting(self.rule)
        return self.per_block and (bool(self.mix) or not columnwise)

    def requires(self, n: int, f: int | None = None, weights: Weights | None = None) -> str | None:
        """Why the guarantee does not hold for n rows of which f are Byzantine; None when it does.

        Args:
            n: how many rows.
            f: of them; by default the tolerance.
            weights: of the rows, where not all weigh the same.

        Raises:
            RowsError: the weights are not n positive numbers.
        """
        f = (self.tolerance or 0) if f is None else f
        check_f(f)
        if n < 1:
            return f"{self.rule!r}: there are no rows"
        if (shares := shares_of(weights, n)) is not None:
            return self._weighted_requires(shares, f)
        moved: Mixing | None = None
        for mixing in self.mix:
            if reason := _why_displaced(mixing, moved) or answers.condition(mixing, n, f):
                return f"{shown(mixing)}: {reason}"
            try:
                n = answers.outputs(mixing, n)
            except PartError as error:
                return str(error).rstrip(".")
            moved = moved or (None if in_place(mixing) else mixing)
        if reason := _why_displaced(self.rule, moved):
            return f"{shown(self.rule)}: {reason}"
        reason = answers.condition(self.rule, n, f)
        after = f" (after {', '.join(map(shown, self.mix))}: {n} points)" if self.mix else ""
        return f"{shown(self.rule)}: {reason}{after}" if reason else None

    @property
    def weightless(self) -> str | None:
        """Why it takes no rows of unequal weight, whatever these are; None where it does."""
        for part in (*self.mix, self.rule):
            if not base.takes_weights(part):
                return f"{shown(part)}: {answers.NO_FORM}"
        return None

    def _weighted_requires(self, shares: Shares, f: int) -> str | None:
        for part in (*self.mix, self.rule):
            if reason := answers.weighted_condition(part, shares, f):
                return f"{shown(part)}: {reason}"
        return None

    def kappa(self, n: int, f: int | None = None, weights: Weights | None = None) -> float | None:
        """The known robustness coefficient for n rows of which f are Byzantine; None where none is known.

        For every S of n - f rows |F(x) - mean_S|^2 is at most kappa times the mean of |x_i - mean_S|^2 over
        S: (f, kappa)-robustness, "Fixing by Mixing" (Allouah et al., 2023). No rule has less than
        f / (n - 2 f). It holds for this object, whatever the f of its parts; and with `per_block` for each
        block, hence for whole vectors (see `blocks`).

        A rule that is robust against g Byzantine rows is so against f < g with the same coefficient: the
        mean over S, of n - f rows, is the mean of the means of its subsets of n - g, which have no more
        variance.

        With `weights` all means are weighted, and S is any rows that weigh 1 - B or more of the whole, for
        the weight budget B of the f heaviest.
        """
        f = (self.tolerance or 0) if f is None else f
        check_f(f)
        shares = shares_of(weights, n)
        told = {g for g in map(tolerance, (*self.mix, self.rule)) if g is not None and g > f}
        each = self._kappa if shares is None else partial(self._weighted_kappa, shares)
        known = [kappa for g in (f, *told) if (kappa := each(n, g)) is not None]
        return min(known, default=None)

    def _kappa(self, n: int, f: int) -> float | None:
        """The coefficient from those of the rule and the mixings, all for the same f."""
        if self.requires(n, f) or not isinstance(self.rule, Resilient):
            return None
        sizes = [*accumulate(self.mix, lambda m, mixing: mixing.outputs(m), initial=n)]
        kappa = self.rule.kappa(sizes[-1], max(f, tolerance(self.rule) or 0))
        for mixing, m in zip(reversed(self.mix), sizes[-2::-1], strict=True):
            if kappa is None or not isinstance(mixing, Conserving):
                return None
            kappa = mixing.carried(m, f, kappa)
        return kappa

    def _weighted_kappa(self, shares: Shares, n: int, f: int) -> float | None:
        if self._weighted_requires(shares, f) or not isinstance(self.rule, WeightedResilient):
            return None
        kappa = self.rule.weighted_kappa(shares, max(f, tolerance(self.rule) or 0))
        for mixing in reversed(self.mix):
            if kappa is None or not isinstance(mixing, WeightedConserving):
                return None
            kappa = mixing.weighted_carried(shares, f, kappa)
        return kappa

    def __call__(
        self,
        rows: Rows | Tensor | Sequence[Any],
        reference: Tensor | None = None,
        rng: torch.Generator | None = None,
        *,
        faults: int = 0,
        measured: Callable[[], Tensor] | None = None,
        into: Tensor | None = None,
        blocks: Sequence[int] | None = None,
        weights: Weights | None = None,
    ) -> Aggregate:
        """Aggregate n flat vectors.

        Block by block, with `per_block`, weights are means over the columns of the update, the spread is
        the sum over blocks, and there are no details.

        Args:
            rows: (n, d) tensor or array, or n vectors (d,); any float dtype, one device; not written to.
            reference: (d,) tensor or array, the last aggregate, from which some rules measure; zero if
                None. Never a row that a worker chose.
            rng: randomness of the mixings that have any; the same state gives the same bits. By default
                torch's own generator, which `torch.manual_seed` seeds.
            faults: rows of provably Byzantine workers that the caller has removed already; like the
                rows that are dropped here, each counts as one of the f.
            measured: returns what `GramAccumulator.products` returns for these rows and this reference;
                called only if a rule needs it and no row is dropped, and not block by block.
            into: memory (d,) for the update, which then has its type; unused where rows have a wider type
                or are dropped.
            blocks: sizes of the parameter tensors, which make up the d columns in this order; required
                with `per_block`, and without a meaning otherwise.
            weights: how much each row weighs, (n,), positive, on any scale; then those of the `faults`
                workers that are gone, if any. The f rows that may be Byzantine become the weight of the f
                heaviest, and a row that is proved invalid spends its own. Weights that are all equal
                change no bit.

        Raises:
            RowsError: the rows are not n flat vectors of one kind, or the reference or the weights do not
                fit them.
            AggregationError: too few rows are left for the guarantee, or more are provably invalid
                than were declared Byzantine.
        """
        rng, rows = rng or (torch.default_generator if self.mix else _UNUSED), Rows.of(rows)
        shares = shares_of(weights, len(rows), faults)
        if self.splits:
            return aggregate_blocks(
                replace(self, per_block=False),
                rows,
                _checked(reference, rows),
                rng,
                blocks=columns_of(blocks, rows.d),
                faults=faults,
                into=into,
                shares=shares,
            )
        before = rng.get_state() if self.mix else None
        given = _CallOptions(measured, into, self.backend)
        described = self._described and shares is None
        for valid in _attempts(rows, reference, described, is_whole(self.rule), given):
            if before is not None:
                rng.set_state(before)
            left = None if shares is None else shares.keeping(valid.kept)
            try:
                now = self.among(valid.kept, len(valid.dropped) + faults, left)
            except AggregationError:
                # It may hold for fewer rows: those that are not finite spend of f.
                if valid.rows is rows and not bool(valid.backend.screen(rows)[0].all()):
                    continue
                raise
            try:
                return now._answer(valid, rng, shares=left)
            except NotFinite:
                continue
        raise BackendRefused(
            f"Backend {self.backend!r} was requested, but sums of these rows overflow in it."
        )

    def repeated(
        self,
        rows: Rows,
        fixed: int,
        reference: Tensor | None,
        measured: Callable[[], Tensor],
        weights: Weights | None = None,
    ) -> Callable[[torch.Generator], Aggregate]:
        """The aggregator for a number of calls with the same tensors, of which some change in between.

        It answers with the bits of a call. What depends on the number and the type of rows is done once,
        and an update that hangs on fixed rows alone is found once: the answer is then the same object.
        With `per_block` that is done for each block by itself: this is not for whole rows then.

        Args:
            rows: as for a call.
            fixed: so many of them, the first, have always the same content.
            reference: as for a call; its content does not change.
            measured: as for a call.
            weights: as for a call; then every update is found anew.

        Raises:
            RowsError: the reference does not fit the rows.
            AggregationError: too few rows for the guarantee.
        """
        shares, backend = shares_of(weights, len(rows)), backend_for(rows, self.backend)
        now = self.among(range(len(rows)), 0, shares)
        given = _CallOptions(measured, None, self.backend)
        valid = _untouched(rows, _checked(reference, rows), backend, given)
        described = self._described and shares is None
        trusted = not is_whole(self.rule) and unscreened(backend, rows, described)
        last = _LastAnswer(fixed) if shares is None else None

        def call(rng: torch.Generator) -> Aggregate:
            before = rng.get_state() if self.mix else None
            if trusted:
                with suppress(NotFinite):
                    return now._answer(valid, rng, last, shares)
            if before is not None:
                rng.set_state(before)
            return self(rows, reference, rng, measured=measured, weights=shares)

        return call

    @property
    def _described(self) -> bool:
        """Whether the kernels see columns alone, through the description of the rule."""
        return not self.mix and is_ordered(self.rule) and not is_selecting(self.rule)

    def _answer(
        self,
        valid: _ValidRows,
        rng: torch.Generator,
        last: _LastAnswer | None = None,
        shares: Shares | None = None,
    ) -> Aggregate:
        """The aggregate of rows that are enough for the guarantee; the last one where it is the same."""
        measured = gram = valid.gram(self.rule).weighted(shares)
        for mixing in self.mix:
            gram = gram.mixed(answers.mixed(mixing, gram, rng))
        if is_selecting(self.rule):
            gram = gram.mixed(answers.selected(self.rule, gram))
        coords = None if gram is measured else on_rows(gram.coords)
        if is_columnwise(self.rule):
            if last is not None and coords is not None:
                return last.or_found(self.rule, gram, partial(valid.reduce, self.rule, coords))
            return valid.reduce(columns_by(self.rule, shares), coords)
        if is_whole(self.rule):
            return valid.compute(self.rule, coords)
        return valid.weigh(cast("Weighting", self.rule), gram)

    def among(self, kept: Sequence[int], faults: int, weights: Weights | None = None) -> Aggregator:
        """This aggregator for the rows that are left after those of `faults` workers are gone.

        Args:
            kept: places of the rows that are left.
            faults: how many workers are gone.
            weights: of the rows that are left, and then of those that are gone.

        Raises:
            AggregationError: the guarantee does not hold for them.
        """
        if faults < 0:
            raise ValueError(f"`faults` should be a non-negative integer. Found {faults}.")
        n = len(kept) + faults
        f = self.tolerance
        if f is not None and faults > f:
            raise AggregationError(
                f"{faults} of {n} rows are provably invalid, but only f = {f} were declared Byzantine."
            )
        left = None if f is None else f - faults
        now = self
        if faults or any(map(is_naming, (*self.mix, self.rule))):
            rule, *mix = (spent(among(part, kept), faults) for part in (self.rule, *self.mix))
            now = replace(
                self,
                rule=cast("Weighting | Columnwise | Whole", rule),
                mix=tuple(cast("Mixing", m) for m in mix),
                f=left,
            )
        if reason := now.requires(n - faults, left or 0, shares_of(weights, n - faults, faults)):
            raise AggregationError(f"{reason}.")
        return now


Weights: TypeAlias = Shares | Sequence[float] | Tensor | NDArray[Any]
"""What rows weigh: positive numbers on any scale."""
How: TypeAlias = Columnwise | Tensor
"""The way to the update's columns: by a rule, or by coefficients of (x_1, ..., x_n, r)."""


@dataclass(frozen=True, eq=False)
class _CallOptions:
    """Options from the caller of an `Aggregator`; they apply only while no row is dropped."""

    measured: Callable[[], Tensor] | None = None
    into: Tensor | None = None
    backend: str | None = None
    """Kernels to insist on."""

    def update(self, how: How, rows: Rows, reference: Tensor | None) -> Tensor | None:
        """The update in the memory of the caller; None where there is none or it has a narrower type."""
        vector = self.into
        if vector is None or torch.promote_types(vector.dtype, rows.dtype) != vector.dtype:
            return None
        # Rows of a narrower type are converted a few columns at a time.
        width = rows.d if rows.dtype == vector.dtype else WIDENED
        for start in range(0, rows.d, width):
            part = rows.columns(start, min(start + width, rows.d))
            reduce_columns(how, part, reference, self.backend, vector, start)
        return vector


def reduce_columns(
    how: How, block: Rows, reference: Tensor | None, name: str | None, vector: Tensor, start: int
) -> None:
    """Write the columns of the update from `start` on, given the same columns of the rows.

    Rows of a narrower type than the vector are converted first.

    Raises:
        NotFinite: a row may not be finite, or a sum overflowed in these kernels.
    """
    if block.dtype != vector.dtype:
        block = Rows(tuple(row.to(vector.dtype) for row in block.vectors))
    backend, stop = backend_for(block, name), start + block.d
    if isinstance(how, Tensor):
        part = None if reference is None else reference[start:stop]
        backend.combine(how[None], block, part, vector[None, start:stop])
        return
    by = how.order(len(block)) if is_ordered(how) else answers.column_reduction(how)
    vector[start:stop] = backend.columnwise(by, None, block, None)


@dataclass(frozen=True, eq=False)
class _ValidRows:
    """The rows that take part, and their places among all n rows."""

    rows: Rows
    reference: Tensor | None
    backend: Backend
    n: int
    kept: list[int]
    dropped: tuple[int, ...]
    given: _CallOptions = _CallOptions()

    def gram(self, rule: Part) -> Gram:
        if getattr(rule, "from_origin", False):
            return Gram.from_origin(self.rows, self.reference)
        if self.given.measured is not None:
            return Gram.about(self.given.measured, len(self.rows), precision_of(self.rows))
        return Gram.of(self.rows, self.reference, self.backend)

    def reduce(self, rule: Columnwise, coords: Tensor | None) -> Aggregate:
        rows = self.rows
        if coords is None and (vector := self.given.update(rule, rows, self.reference)) is not None:
            return Aggregate(vector, None, self.dropped)
        if coords is not None and (chosen := rows_of_points(coords)):  # then nothing need be multiplied
            rows, coords = Rows(tuple(rows.vectors[i] for i in chosen)), None
        points = len(rows) if coords is None else len(coords)
        reduce = rule.order(points) if is_ordered(rule) else answers.column_reduction(rule)
        vector = self.backend.columnwise(reduce, coords, rows, self.reference)
        return Aggregate(vector, None, self.dropped)

    def compute(self, rule: Whole, coords: Tensor | None) -> Aggregate:
        if coords is None:
            matrix = torch.stack(self.rows.vectors)
        else:
            matrix = self.backend.combine(coords, self.rows, self.reference)
        return Aggregate(answers.vector(rule, matrix), None, self.dropped)

    def weigh(self, rule: Weighting, gram: Gram) -> Aggregate:
        place = gram.combination(answers.weights(rule, gram))
        coords = on_rows(place)
        vector = self.given.update(coords, self.rows, self.reference)
        if vector is None:
            vector = self._combined(rule, coords)
        said = answers.explanation(rule, gram) if is_explained(rule) else {}
        points, rows = single_rows(gram.coords)
        details = {name: self._placed(values[points], rows) for name, values in said.items() if len(rows)}
        weights = self._of_all(coords[:-1], 0.0)
        spread = gram.spread(place)
        return Aggregate(vector, weights, self.dropped, float(coords[-1]), details, spread)

    def _combined(self, rule: Weighting, coords: Tensor) -> Tensor:
        """The update from coefficients of (x_1, ..., x_n, r).

        Raises:
            AggregationError: it overflows the type of the rows.
        """
        vector = self.backend.combine(coords[None], self.rows, self.reference)[0]
        # The reference may be wider than the rows.
        convex = float(coords.abs().sum()) <= CONVEX and (not coords[-1] or vector.itemsize >= 4)
        if convex or bool(vector.isfinite().all()):
            return vector
        vector = exact.combine(coords[None], self.rows, self.reference)[0]
        if not bool(vector.isfinite().all()):
            most = torch.finfo(vector.dtype).max
            raise AggregationError(
                f"{shown(rule)}: the update has numbers above {most:.3g}, the largest of {vector.dtype}. "
                "Scale the rows down, or give them in a wider type."
            )
        return vector

    def _placed(self, values: Tensor, rows: Tensor) -> Tensor:
        """Values of some rows at their places among all, NaN for the others: (n,)."""
        blank = torch.full((len(self.kept),), torch.nan, dtype=torch.float64, device="cpu")
        return self._of_all(blank.index_copy(0, rows, values.double()), torch.nan)

    def _of_all(self, values: Tensor, of_dropped: float) -> Tensor:
        if not self.dropped:
            return values.double()
        out = torch.full((self.n,), of_dropped, dtype=torch.float64, device="cpu")
        out[self.kept] = values.double()
        return out


class _LastAnswer:
    """The last update of a columnwise rule that hangs on one point, a combination of fixed rows.

    Where most points are the same one, as after nearest-neighbour mixing with the other rows far away, its
    values are the middle of every column, wherever the others are.

    Args:
        fixed: so many rows, the first, have always the same content.
    """

    def __init__(self, fixed: int) -> None:
        self._fixed = fixed
        self._point = b""
        self._answer: Aggregate | None = None

    def or_found(self, rule: Columnwise, gram: Gram, find: Callable[[], Aggregate]) -> Aggregate:
        """The last answer, where it is that of these points too; otherwise the one that `find` returns."""
        point = self._point_of(rule, gram)
        if point is None:
            return find()
        if self._answer is None or point != self._point:
            self._answer, self._point = find(), point
        return self._answer

    def _point_of(self, rule: Columnwise, gram: Gram) -> bytes | None:
        """The coordinates of the point that alone decides; None where there is no such point."""
        order = rule.order(len(gram)) if is_ordered(rule) else None
        if not isinstance(order, Window):
            return None
        coords = gram.coords.numpy()
        equal = int((coords == coords[0]).all(axis=1).sum())
        decides = len(coords) - equal <= order.lo and order.hi <= equal
        moves = coords[0, self._fixed : gram.basis.n].any()
        # No sum of numbers of this size overflows, which kernels would notice in all points.
        if not decides or moves or not gram.basis.products.numpy().diagonal().max() < MODERATE:
            return None
        return bytes(coords[0].tobytes())


def _attempts(
    rows: Rows, reference: Tensor | None, described: bool, whole: bool, given: _CallOptions
) -> Iterator[_ValidRows]:
    """First all rows unscreened, where the kernels detect invalid ones; then those that pass a screening.

    In almost every round all rows are finite, and a screening would read them once more. A rule that sees
    the rows as a `whole` is given to no kernel.
    """
    chosen, reference = backend_for(rows, given.backend), _checked(reference, rows)
    trusted = not whole and unscreened(chosen, rows, described)
    if trusted:
        yield _untouched(rows, reference, chosen, given)
    finite_rows = _screened(rows, reference, chosen)
    if not trusted and finite_rows.rows is rows:
        finite_rows = replace(finite_rows, given=given)
    yield finite_rows
    finite_rows = replace(finite_rows, given=_CallOptions())
    if given.backend is None:
        yield replace(finite_rows, backend=after(chosen, finite_rows.rows))


def _untouched(rows: Rows, reference: Tensor | None, backend: Backend, given: _CallOptions) -> _ValidRows:
    """All rows, as they are."""
    return _ValidRows(rows, reference, backend, len(rows), [*range(len(rows))], (), given)


def _screened(rows: Rows, reference: Tensor | None, chosen: Backend) -> _ValidRows:
    """The finite rows, with subnormal numbers flushed to zero, as they would slow every product down."""
    finite, subnormal = chosen.screen(rows)
    kept = finite.nonzero().flatten().tolist()
    dropped = tuple((~finite).nonzero().flatten().tolist())
    clean = rows.keep(kept).flushed(subnormal[kept])
    return _ValidRows(clean, reference, chosen, len(rows), kept, dropped)


def shares_of(weights: Weights | None, n: int, faults: int = 0) -> Shares | None:
    """The weights of n rows, and of those of `faults` workers that are gone; None where all are equal.

    Raises:
        RowsError: they are not positive numbers, one for each.
    """
    if weights is None:
        return None
    if isinstance(weights, Shares):
        assert len(weights) == n
        return weights
    try:
        return Shares.of(weights, n, faults)
    except SharesError as error:
        raise RowsError(str(error)) from None


def columns_by(rule: Columnwise, shares: Shares | None) -> Columnwise:
    """The reduction of columns by a rule, for points of these weights."""
    if shares is None:
        return rule
    assert is_columnar(rule)
    return answers.weighted_columns(rule, shares)


def _checked(reference: Tensor | None, rows: Rows) -> Tensor | None:
    """The reference as the kernels take it: on the device of the rows, in the type of the computation."""
    if reference is None:
        return None
    reference = tensor_of(reference, "reference")
    if reference.shape != (rows.d,):
        raise RowsError(f"`reference` should be ({rows.d},). Found {tuple(reference.shape)}.")
    reference = reference.detach().to(device=rows.device, dtype=rows.working_dtype)
    # The least and the largest are NaN if any entry is.
    if not all(map(math.isfinite, torch.stack(torch.aminmax(reference)).tolist())):
        raise RowsError(f"`reference` should be finite in {rows.working_dtype}. Found NaN or infinity.")
    return reference


def on_rows(coords: Tensor) -> Tensor:
    """Coordinates in the basis (x_i, r, 0) as coefficients of (x_i, r); see `kernels.combine`."""
    return coords[..., :-1]


def _why_displaced(part: Part, moved: Mixing | None) -> str | None:
    """Why a part that names rows by their place cannot follow a mixing that moved them."""
    if moved is None or not by_place(part):
        return None
    return f"it names a row by its place, and behind {shown(moved)} another point may stand there"


def single_rows(coords: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the points that are a multiple of one row each, and of these rows."""
    there = coords[:, :-1] != 0
    points = (there.sum(dim=1) == 1) & ~there[:, -1]
    return points.nonzero().flatten(), there[points].int().argmax(dim=1)


def rows_of_points(coords: Tensor) -> list[int]:
    """The row that each point is, given coefficients (k, n+1) of (x_i, r); empty if one is none."""
    given = coords.numpy()
    ones = given[:, :-1] == 1
    alone = ones.any(axis=1).all() and np.count_nonzero(given) == len(given)
    return ones.argmax(axis=1).tolist() if alone else []

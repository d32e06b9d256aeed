"""Rows in, update out: screening, one Gram, mixings, a rule, one combine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from varangian.aggregators.base import (
    Aggregate,
    AggregationError,
    Columnwise,
    Explained,
    Mixing,
    Weighting,
    spent,
    tolerance,
)
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import Backend, backend_for
from varangian.aggregators.rows import Rows


@dataclass(frozen=True)
class Aggregator:
    """A rule behind any number of mixings.

    `Aggregator(Krum(f=3), mix=(NNM(f=3),))(rows).vector` is the update.
    """

    rule: Weighting | Columnwise
    mix: tuple[Mixing, ...] = ()
    f: int | None = None
    """How many of the rows may be Byzantine; by default the largest f that a part was told."""
    backend: str | None = field(default=None, kw_only=True)
    """Kernels to insist on; by default the fastest that takes the rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mix", tuple(self.mix))

    @property
    def tolerance(self) -> int | None:
        """The declared f; None when neither the aggregator nor a part of it was told one."""
        if self.f is not None:
            return self.f
        told = [f for f in map(tolerance, (*self.mix, self.rule)) if f is not None]
        return max(told, default=None)

    def requires(self, n: int, f: int | None = None) -> str | None:
        """Why the guarantee does not hold for n rows of which f are Byzantine; None when it does."""
        f = (self.tolerance or 0) if f is None else f
        if n < 1:
            return f"{_name(self.rule)}: there are no rows"
        for mixing in self.mix:
            if reason := mixing.requires(n, f):
                return f"{_name(mixing)}: {reason}"
            n = mixing.outputs(n)
        reason = self.rule.requires(n, f)
        after = f" (after {', '.join(map(_name, self.mix))}: {n} points)" if self.mix else ""
        return f"{_name(self.rule)}: {reason}{after}" if reason else None

    def __call__(
        self,
        rows: Rows | Tensor | Sequence[Any],
        reference: Tensor | None = None,
        rng: torch.Generator | None = None,
        *,
        faults: int = 0,
    ) -> Aggregate:
        """Aggregate n flat vectors.

        Args:
            rows: (n, d) tensor or array, or n vectors (d,); any float dtype, one device; not written to.
            reference: (d,) point to measure from: the last aggregate, or nothing (zero). Never a row
                that a worker chose.
            rng: randomness of the mixings that have any; the same state gives the same bits.
            faults: rows of provably Byzantine workers that the caller has removed already; like the
                rows that are dropped here, each spends one of the f.

        Raises:
            RowsError: the rows are not n flat vectors of one kind.
            AggregationError: too few rows are left for the guarantee, or more are provably invalid
                than were declared Byzantine.
        """
        rows = Rows.of(rows)
        backend = backend_for(rows, self.backend)
        _check_reference(reference, rows)
        kept, dropped, clean = _screen(rows, backend)
        now = self._after(len(rows) + faults, len(dropped) + faults)
        if isinstance(now.rule, Columnwise) and not now.mix:
            vector = backend.columnwise(now.rule.columnwise, None, clean, reference)
            return Aggregate(vector, None, dropped)
        gram = Gram.of(clean, reference, backend)
        for mixing in now.mix:
            gram = gram.mixed(mixing.mix(gram, rng or torch.Generator().manual_seed(0)))
        if isinstance(now.rule, Columnwise):
            coords = _on_rows(gram.coords)
            vector = backend.columnwise(now.rule.columnwise, coords, clean, reference)
            return Aggregate(vector, None, dropped)
        return _weighted(now.rule, gram, (clean, reference, backend), (len(rows), kept, dropped))

    def _after(self, n: int, faults: int) -> Aggregator:
        """This aggregator for the rows that are left, or the sentence why it must not run on them."""
        f = self.tolerance
        if f is not None and faults > f:
            raise AggregationError(
                f"{faults} of {n} rows are provably invalid, but only f = {f} were declared Byzantine."
            )
        left = None if f is None else f - faults
        now = Aggregator(spent(self.rule, faults), tuple(spent(m, faults) for m in self.mix), left)
        if reason := now.requires(n - faults, left or 0):
            raise AggregationError(f"{reason}.")
        return now


def _name(part: object) -> str:
    return repr(part)


def _check_reference(reference: Tensor | None, rows: Rows) -> None:
    if reference is None:
        return
    if reference.shape != (rows.d,):
        raise ValueError(f"`reference` should be ({rows.d},). Found {tuple(reference.shape)}.")
    if not bool(reference.isfinite().all()):
        raise ValueError("`reference` should be finite. Found NaN or infinity.")


def _screen(rows: Rows, backend: Backend) -> tuple[list[int], tuple[int, ...], Rows]:
    """Indices kept and dropped, and the kept rows with subnormal numbers flushed to zero."""
    finite, subnormal = backend.screen(rows)
    kept = finite.nonzero().flatten().tolist()
    dropped = tuple((~finite).nonzero().flatten().tolist())
    if len(kept) == len(rows) and not bool(subnormal.any()):
        return kept, dropped, rows
    tiny = torch.finfo(rows.dtype).tiny
    flushed = [
        torch.where(rows.vectors[i].abs() < tiny, 0.0, rows.vectors[i]).to(rows.dtype)
        if subnormal[i]
        else rows.vectors[i]
        for i in kept
    ]
    return kept, dropped, Rows(tuple(flushed))


def _on_rows(coords: Tensor) -> Tensor:
    """Coordinates in the basis (x_i - r, r) as coefficients of (x_i, r); see `kernels.combine`."""
    on_rows = coords.clone()
    on_rows[..., -1] -= coords[..., :-1].sum(dim=-1)
    # An affine combination has exactly nothing of r; what is left of it is rounding.
    negligible = on_rows[..., -1].abs() < 1e-12 * (1 + coords[..., :-1].abs().sum(dim=-1))
    on_rows[..., -1] = torch.where(negligible, 0.0, on_rows[..., -1])
    return on_rows


def _weighted(
    rule: Weighting,
    gram: Gram,
    points: tuple[Rows, Tensor | None, Backend],
    who: tuple[int, list[int], tuple[int, ...]],
) -> Aggregate:
    rows, reference, backend = points
    n, kept, dropped = who
    coords = _on_rows(gram.combination(rule(gram)))
    vector = backend.combine(coords[None], rows, reference)[0]
    weights = torch.zeros(n, dtype=torch.float64)
    weights[kept] = coords[:-1]
    details: Mapping[str, Tensor] = rule.explain(gram) if isinstance(rule, Explained) else {}
    spread = {k: _scattered(v, n, kept) for k, v in details.items() if len(v) == len(kept)}
    return Aggregate(vector, weights, dropped, float(coords[-1]), spread)


def _scattered(values: Tensor, n: int, kept: list[int]) -> Tensor:
    out = torch.full((n,), torch.nan, dtype=torch.float64)
    out[kept] = values.double()
    return out

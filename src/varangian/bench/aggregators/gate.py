"""The check before timing: a result has to be that of the reference backend in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from varangian.bench.aggregators.cases import Case, Input

TOLERANCE = 1e-5
"""Relative Euclidean distance between float32 and float64 that is rounding."""
COLUMNS = (1 << 16) + 4465
"""Columns that are compared: more than one slice of the native kernels, and no round number."""


@dataclass(frozen=True)
class Checked:
    """The error of a result, and the verdict."""

    error: float | None
    reason: str | None = None
    """The reason why it is wrong; None when it is right."""


def check(case: Case, given: Input, backend: str | None) -> Checked:
    """Compare a case with the reference backend, on the rows given."""
    try:
        found, wanted = case(given, backend), case(given.double(), "reference")
    except Exception as error:  # a backend may be broken in any way
        return Checked(None, f"{type(error).__name__}: {error}")
    return compare(found, wanted, TOLERANCE)


def compare(found: Tensor, wanted: Tensor, tolerance: float) -> Checked:
    if found.shape != wanted.shape:
        return Checked(None, f"its shape should be {tuple(wanted.shape)}. Found {tuple(found.shape)}.")
    error = difference(found, wanted)
    if not error <= tolerance:  # NaN is not
        finite = error if math.isfinite(error) else None
        return Checked(finite, f"it is off by {error:.1e} of the reference, and {tolerance:.0e} is allowed")
    return Checked(error)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the length of what is wanted; absolute where that is zero."""
    length = float(wanted.double().norm())
    return float((found.double() - wanted.double()).norm()) / (length or 1.0)

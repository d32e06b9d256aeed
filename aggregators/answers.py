"""The answers of rules and mixings to an aggregator; those of the user's classes are checked.

A class of the user that raises, or returns what it should not, is a `PartError` that names it. A server
takes that as a round without an update.

m  points a rule sees     k  points after a mixing     b  columns of a block
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import (
    Columnar,
    Columnwise,
    Explained,
    Mixing,
    Part,
    Selecting,
    Weighting,
    Whole,
    is_columnwise,
    is_weighable,
    takes_weights,
)
from varangian.aggregators.errors import AggregationError, PartError
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import BackendRefused, NotFinite
from varangian.aggregators.numeric.shares import Shares
from varangian.own_classes import is_own, named
from varangian.plugins import describe_error

LET_THROUGH = (AggregationError, NotFinite, BackendRefused)
"""Errors that are no fault of the class: what it raises on purpose, and those of the kernels."""


NO_FORM = "it has no form for rows of unequal weight"


def condition(part: Part, n: int, f: int) -> str | None:
    """Why the guarantee of a part does not hold for n points of which f are Byzantine; else None."""
    if not is_own(part):
        return part.requires(n, f)
    return _reason(part, "requires", lambda: part.requires(n, f))


def weighted_condition(part: Part, shares: Shares, f: int) -> str | None:
    """As `condition`, for points of these weights; also why the part does not take any."""
    if not is_weighable(part) or not takes_weights(part):
        return NO_FORM
    if not is_own(part):
        return part.weighted_requires(shares, f)
    return _reason(part, "weighted_requires", lambda: part.weighted_requires(shares, f))


def _reason(part: Part, method: str, ask: Callable[[], Any]) -> str | None:
    try:
        reason = ask()
    except AggregationError as error:
        return str(error).rstrip(".")
    except Exception as error:
        return f"its `{method}` failed: {describe_error(error, named(part))}"
    if reason is None or isinstance(reason, str):
        return reason
    return f"its `{method}` should return None or a sentence, and returned {reason!r}"


def outputs(mixing: Mixing, n: int) -> int:
    """The number of points that a mixing makes of n."""
    if not is_own(mixing):
        return mixing.outputs(n)
    with _asked(mixing):
        k: Any = mixing.outputs(n)
        if not isinstance(k, int) or k < 1:
            raise _unfit(mixing, "outputs", "a number of points of at least 1", repr(k))
        return k


def mixed(mixing: Mixing, gram: Gram, rng: torch.Generator) -> Tensor:
    """The combinations of a mixing: (k, m), or (k, m+1)."""
    if not is_own(mixing):
        return mixing.mix(gram, rng)
    k = outputs(mixing, len(gram))
    with _asked(mixing):
        return _coefficients(mixing, "mix", mixing.mix(gram, rng), (k,), len(gram))


def selected(rule: Selecting, gram: Gram) -> Tensor:
    """The points that a columnwise rule chooses first: (k, m), or (k, m+1)."""
    if not is_own(rule):
        return rule.select(gram)
    with _asked(rule):
        return _coefficients(rule, "select", rule.select(gram), (None,), len(gram))


def weights(rule: Weighting, gram: Gram) -> Tensor:
    """The weights of the points: (m,), or (m+1,)."""
    if not is_own(rule):
        return rule(gram)
    with _asked(rule):
        return _coefficients(rule, "__call__", rule(gram), (), len(gram))


def explanation(rule: Explained, gram: Gram) -> Mapping[str, Tensor]:
    """Further values for each point, by name: (m,) each."""
    if not is_own(rule):
        return rule.explain(gram)
    with _asked(rule):
        return {str(name): _each(rule, values, len(gram)) for name, values in rule.explain(gram).items()}


def column_reduction(rule: Columnwise) -> Callable[[Tensor], Tensor]:
    """The reduction of a block of columns: (m, b) -> (b,)."""
    if not is_own(rule):
        return rule.columnwise

    def reduce(block: Tensor) -> Tensor:
        with _asked(rule):
            found = _tensor(rule, "columnwise", rule.columnwise(block))
            if found.shape != block.shape[1:]:
                expected = f"one number for each of {block.shape[1]} columns"
                raise _unfit(rule, "columnwise", expected, f"shape {list(found.shape)}")
            return found.to(block)

    return reduce


def weighted_columns(rule: Columnar, shares: Shares) -> Columnwise:
    """The reduction of columns whose values have these weights."""
    if not is_own(rule):
        return rule.weighted_columns(shares)
    with _asked(rule):
        found: Any = rule.weighted_columns(shares)
        if not is_columnwise(found):
            expected = "a rule with `columnwise(block)`"
            raise _unfit(rule, "weighted_columns", expected, type(found).__name__)
        return found


def vector(rule: Whole, rows: Tensor) -> Tensor:
    """The update from the rows: (m, d) -> (d,)."""
    with _asked(rule):
        found = _tensor(rule, "aggregate", rule.aggregate(rows))
        if found.shape != rows.shape[1:]:
            expected = f"a vector of {rows.shape[1]} numbers"
            raise _unfit(rule, "aggregate", expected, f"shape {list(found.shape)}")
        return found.detach().to(rows)


@contextmanager
def _asked(part: object) -> Generator[None]:
    try:
        yield
    except LET_THROUGH:
        raise
    except Exception as error:
        raise PartError(f"{named(part)} failed: {describe_error(error, named(part))}.") from error


def _coefficients(part: Part, method: str, found: Any, before: Sequence[int | None], m: int) -> Tensor:
    """Coefficients of m points, or of these and the reference, as the kernels take them.

    Args:
        part: that gave them.
        method: of the part.
        found: by it.
        before: the sizes of the axes before the points, None for any.
        m: the number of points.
    """
    tensor = _tensor(part, method, found).to("cpu", torch.float64)
    sizes = tensor.shape[:-1]
    fits = len(sizes) == len(before) and all(
        b in (None, size) for b, size in zip(before, sizes, strict=True)
    )
    if not fits or tensor.shape[-1] not in (m, m + 1):
        axes = ", ".join(str(m) if size is None else str(size) for size in (*before, m))
        raise _unfit(part, method, f"a tensor of shape [{axes}]", f"shape {list(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise _unfit(part, method, "finite numbers", "NaN or infinity")
    return tensor


def _each(rule: Explained, found: Any, m: int) -> Tensor:
    values = _tensor(rule, "explain", found).to("cpu", torch.float64)
    if values.shape != (m,):
        raise _unfit(rule, "explain", f"{m} numbers for each name", f"shape {list(values.shape)}")
    return values


def _tensor(part: object, method: str, found: Any) -> Tensor:
    if isinstance(found, Tensor):
        return found.detach()
    if isinstance(found, np.ndarray | list | tuple):
        return torch.as_tensor(np.asarray(found), device="cpu")
    raise _unfit(part, method, "a tensor", type(found).__name__)


def _unfit(part: object, method: str, expected: str, found: str) -> PartError:
    return PartError(f"`{method}` of {named(part)} should return {expected}. Found {found}.")

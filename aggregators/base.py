"""The interfaces of rules and mixings: a frozen dataclass whose fields are its settings, of three shapes.

n  rows (workers)     f  of them Byzantine     m  points a rule sees     b  columns of a block
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeGuard, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from varangian.aggregators.gram import Gram
from varangian.aggregators.numeric.order import Order
from varangian.aggregators.numeric.shares import CRUMB, MINORITY, Shares
from varangian.aggregators.numeric.weighted_order import WeightedOrder
from varangian.own_classes import OwnClasses, OwnFunction, replaced
from varangian.registry import Registry

P = TypeVar("P", bound="Part")


@runtime_checkable
class Part(Protocol):
    """Base of rules and mixings.

    A rule without a guarantee against Byzantine rows has an attribute `robust = False`; one that asks for
    the reference, `uses_reference = True`, without which it may not be given one.
    """

    def requires(self, n: int, f: int, /) -> str | None:
        """Why the guarantee does not hold for n rows of which f are Byzantine; None when it does."""
        ...


@runtime_checkable
class Weighting(Part, Protocol):
    """A rule that computes weights of the points from their inner products alone.

    One that needs the lengths and directions of rows that are far shorter than others has an attribute
    `from_origin = True`; its rows are measured in float64.
    """

    def __call__(self, gram: Gram, /) -> Tensor:
        """Weights (m,), or (m+1,) with the reference last; float64."""
        ...


@runtime_checkable
class Explained(Protocol):
    """A weighting that reports further values for each point."""

    def explain(self, gram: Gram, /) -> Mapping[str, Tensor]:
        """Values by name, (m,) each, for the round record."""
        ...


@runtime_checkable
class Mixing(Part, Protocol):
    """A step before the rule that replaces m points by k combinations of them.

    One whose point i always stands for row i has an attribute `in_place = True`; parts that name rows by
    their place can follow only such mixings.
    """

    def mix(self, gram: Gram, rng: torch.Generator, /) -> Tensor:
        """A matrix (k, m), or (k, m+1) with the reference last; float64."""
        ...

    def outputs(self, n: int, /) -> int:
        """The number of points k that it makes of n."""
        ...


@runtime_checkable
class Columnwise(Part, Protocol):
    """A coordinate-wise rule, which reduces each column by itself."""

    def columnwise(self, block: Tensor, /) -> Tensor:
        """(m, b) -> (b,), same dtype and device; must not write to `block`."""
        ...


@runtime_checkable
class Ordered(Columnwise, Protocol):
    """A columnwise rule with a description that native kernels execute."""

    def order(self, m: int, /) -> Order | WeightedOrder:
        """The description for columns of m values: `columnwise(block)` is `order(len(block))(block)`."""
        ...


@runtime_checkable
class Selecting(Columnwise, Protocol):
    """A columnwise rule that first chooses or combines points by their geometry, after all mixings."""

    def select(self, gram: Gram, /) -> Tensor:
        """A matrix (k, m), or (k, m+1) with the reference last; float64. `columnwise` sees these k."""
        ...


@runtime_checkable
class Whole(Part, Protocol):
    """A rule that computes the update from the rows themselves, all of them in one matrix.

    The matrix is a copy: memory for n vectors more, and no native kernels. Rows that are not finite are
    left out of it.
    """

    def aggregate(self, rows: Tensor, /) -> Tensor:
        """(m, d) -> (d,)."""
        ...


@runtime_checkable
class Resilient(Part, Protocol):
    """A rule whose robustness coefficient is known."""

    def kappa(self, n: int, f: int, /) -> float | None:
        """The coefficient, as `Aggregator.kappa` has it; None where it is not known.

        Only asked where `requires(n, f)` is None, and with the f that the rule was told, if any: it may be
        more than there are Byzantine rows.
        """
        ...


@runtime_checkable
class Conserving(Part, Protocol):
    """A mixing with a known effect on the robustness coefficient of the rule after it."""

    def carried(self, n: int, f: int, kappa: float, /) -> float | None:
        """The coefficient of the mixing with what follows it, which by itself has `kappa`; None if unknown.

        Only asked where `requires(n, f)` is None. The mixing may have been told of more than f Byzantine
        rows; the coefficient holds for f.
        """
        ...


@runtime_checkable
class Naming(Part, Protocol):
    """A rule or a mixing that names rows by their place.

    One that can, but is not configured to, has an attribute `by_place = False`.
    """

    def among(self, kept: Sequence[int], /) -> Self:
        """The same part when only these rows are left.

        Raises:
            AggregationError: a row that it needs is gone.
        """
        ...


@runtime_checkable
class Weighable(Part, Protocol):
    """A rule or a mixing with a form for rows of unequal weight; without it a part refuses weights.

    The Gram matrix that it is given then has `shares`. A mixing keeps every point in its place, and a
    columnwise rule is `Columnar`. Where all rows weigh the same, `shares` is None.
    """

    def weighted_requires(self, shares: Shares, f: int, /) -> str | None:
        """As `requires`, for rows of these weights of which any f may be Byzantine."""
        ...


@runtime_checkable
class Columnar(Weighable, Protocol):
    """A columnwise rule with a form for rows of unequal weight."""

    def weighted_columns(self, shares: Shares, /) -> Columnwise:
        """The reduction of columns whose values have these weights."""
        ...


@runtime_checkable
class WeightedResilient(Weighable, Protocol):
    """A rule whose robustness coefficient is known for rows of unequal weight."""

    def weighted_kappa(self, shares: Shares, f: int, /) -> float | None:
        """As `kappa`; only asked where `weighted_requires(shares, f)` is None."""
        ...


@runtime_checkable
class WeightedConserving(Weighable, Protocol):
    """A mixing with a known effect on the robustness coefficient for rows of unequal weight."""

    def weighted_carried(self, shares: Shares, f: int, kappa: float, /) -> float | None:
        """As `carried`; only asked where `weighted_requires(shares, f)` is None."""
        ...


# `isinstance` with a protocol takes microseconds; `issubclass` caches its answer by class.


def is_columnwise(rule: object) -> TypeGuard[Columnwise]:
    return issubclass(type(rule), Columnwise)


def is_selecting(rule: object) -> TypeGuard[Selecting]:
    return issubclass(type(rule), Selecting)


def is_ordered(rule: object) -> TypeGuard[Ordered]:
    return issubclass(type(rule), Ordered)


def is_whole(rule: object) -> TypeGuard[Whole]:
    return issubclass(type(rule), Whole) and not issubclass(type(rule), Columnwise)


def is_explained(rule: object) -> TypeGuard[Explained]:
    return issubclass(type(rule), Explained)


def is_naming(rule: object) -> TypeGuard[Naming]:
    return issubclass(type(rule), Naming)


def is_weighable(part: Part) -> TypeGuard[Weighable]:
    return issubclass(type(part), Weighable)


def is_columnar(rule: object) -> TypeGuard[Columnar]:
    return issubclass(type(rule), Columnar)


def takes_weights(part: Part | type[Part]) -> bool:
    """Whether a part, or every part of a class, has a form for rows of unequal weight."""
    of = part if isinstance(part, type) else type(part)
    columnar = issubclass(of, Columnar) and not issubclass(of, Selecting)
    return issubclass(of, Weighable) and (columnar or not issubclass(of, Columnwise))


class Aggregate(NamedTuple):
    """The update of a round, and the weight of each row in it."""

    vector: Tensor
    """(d,), in the dtype and on the device of the rows."""
    weights: Tensor | None
    """(n,) float64: the coefficient of each row in `vector`; None for a columnwise rule."""
    dropped: tuple[int, ...]
    """Rows that were provably invalid (not finite) and took no part."""
    reference_weight: float = 0.0
    """The coefficient of the reference in `vector`."""
    details: Mapping[str, Tensor] = MappingProxyType({})
    """Further values of the rule for each row: (n,) float64 by name, NaN where there is none. After a
    mixing those of points that are made of several rows are left out."""
    spread: float | None = None
    """Mean squared distance to `vector` of the rows that took part; None where no distance was measured."""

    @property
    def effective(self) -> float | None:
        """Effective number of rows: (sum c)^2 / sum c^2 of the weights c."""
        if self.weights is None:
            return None
        shares = self.weights / self.weights.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        return float(shares.sum().square() / shares.square().sum().clamp(min=1))


class FunctionRule(OwnFunction):
    """A rule that is a function of the user: called with the rows (m, d), returns the update (d,).

    Its other parameters are its settings; one named `f` is the declared f. Nothing is known of its
    guarantee, and no condition is asked.
    """

    function_given: ClassVar[tuple[str, ...]] = ("rows",)

    def requires(self, n: int, f: int) -> str | None:
        return told_enough(self, f)

    def aggregate(self, rows: Tensor) -> Tensor:
        vector: Tensor = self.call_function(rows)
        return vector


NEEDS_REQUIRES = "`requires(n, f)`, which returns why its guarantee does not hold, or None"
NEEDS_RULE = (
    "`aggregate(rows)`, `columnwise(block)` or `__call__(gram)`, which compute the update from the rows, "
    "each coordinate of it, or the weights of the rows"
)


def _lacks_of_rule(cls: type[Any]) -> str:
    if issubclass(cls, Mixing):
        return f"is a mixing, a step before a rule: write {cls.__module__}:{cls.__qualname__}+trimmed_mean"
    called = any("__call__" in vars(base) for base in cls.__mro__)
    computes = called or hasattr(cls, "columnwise") or hasattr(cls, "aggregate")
    return _lacks("rule", [(hasattr(cls, "requires"), NEEDS_REQUIRES), (computes, NEEDS_RULE)])


def _lacks_of_mixing(cls: type[Any]) -> str:
    needed = [
        (hasattr(cls, "requires"), NEEDS_REQUIRES),
        (hasattr(cls, "mix"), "`mix(gram, rng)`, which returns the combinations (k, m) of the points"),
        (hasattr(cls, "outputs"), "`outputs(n)`, the number of points k that it makes of n"),
    ]
    return _lacks("mixing", needed)


def _lacks(kind: str, needed: Sequence[tuple[bool, str]]) -> str:
    missing = [text for there, text in needed if not there]
    return f"should have the methods of a {kind}. It lacks {'; and '.join(missing)}" if missing else ""


RULES: Registry[Weighting | Columnwise | Whole] = Registry(
    "aggregator", OwnClasses(_lacks_of_rule, FunctionRule)
)
MIXINGS: Registry[Mixing] = Registry("mixing", OwnClasses(_lacks_of_mixing))


def tolerance(part: Part) -> int | None:
    """The f of a part, how many Byzantine rows it tolerates; None when it has no such field."""
    f: Any = getattr(part, "f", None)
    return int(f) if isinstance(f, Integral) else None


def by_place(part: Part) -> bool:
    """Whether a part names rows by their place."""
    return is_naming(part) and bool(getattr(part, "by_place", True))


def uses_reference(part: Part) -> bool:
    """Whether what a part makes of the rows depends on the reference; of a class from elsewhere it may."""
    ours = type(part).__module__.startswith("varangian.aggregators.")
    return bool(getattr(part, "uses_reference", not ours))


def in_place(mixing: Mixing) -> bool:
    """Whether every point that comes out stands for the row in its place."""
    return bool(getattr(mixing, "in_place", False))


def among(part: P, kept: Sequence[int]) -> P:
    """The same part when only these rows are left."""
    return cast("P", part.among(kept)) if is_naming(part) else part


def spent(part: P, faults: int) -> P:
    """The same part after `faults` of its Byzantine rows have proved themselves so and are gone."""
    f = tolerance(part)
    if f is None or faults == 0:
        return part
    return replaced(part, f=max(0, f - faults))


def told_enough(part: Part, f: int) -> str | None:
    """Why the f of a part is too small, as a sentence; None when it is not."""
    told = tolerance(part)
    if told is not None and told < f:
        return f"it was told f = {told}, but {f} of the workers may be Byzantine"
    return None


def robust(rule: Part) -> bool:
    """Whether a rule has a guarantee against Byzantine rows; true unless it has `robust = False`."""
    return bool(getattr(rule, "robust", True))


def honest_majority(n: int, f: int) -> str | None:
    """The condition n >= 2 f + 1 of any robust rule, in the form of `requires`."""
    if n < 2 * f + 1:
        return f"it needs n >= 2 f + 1, {2 * f + 1} for f = {f}, and n is {n}"
    return None


def light_minority(shares: Shares, f: int) -> str | None:
    """The condition B < 1/2 of any robust rule, where rows have weights: honest rows have the majority."""
    budget = shares.budget(f)
    if budget >= MINORITY:
        # With f = 0 it is what the invalid rows, lighter than the heaviest, left of the budget.
        who = f"the f = {f} heaviest" if f else "those that were not found invalid"
        return f"it needs less than half of the weight on Byzantine rows, and {who} may have {budget:.3g}"
    return None


def above(value: float, bound: float) -> bool:
    """Whether a sum of weights is more than another, beyond rounding."""
    return value > bound + CRUMB


def check_f(f: int) -> None:
    """For `__post_init__`: f is a count."""
    if not is_count(f):
        raise ValueError(f"`f` should be a non-negative integer. Found {f}.")


def is_count(value: object) -> bool:
    """Whether a value is a non-negative integer."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def check_count(name: str, value: int) -> None:
    """For `__post_init__`: a count of at least 1."""
    if not is_count(value) or value == 0:
        raise ValueError(f"`{name}` should be a positive integer. Found {value}.")


def check_positive(name: str, value: float) -> None:
    """For `__post_init__`: a positive, finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` should be positive and finite. Found {value}.")

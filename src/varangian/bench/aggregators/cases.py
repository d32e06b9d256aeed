"""The cases of the aggregator benchmark: rules, pipelines, and the rows they are measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from varangian.aggregators import RULES, Aggregator, Gram, Rows, Selecting, aggregator_from
from varangian.aggregators.kernels import backend_for
from varangian.aggregators.spec import JOINT

MIXED = ("nnm+median", "nnm+krum", "nnm+geometric_median", "nnm+flag")
"""Pipelines that are measured besides every rule alone."""
WITH_FIELDS: dict[str, object] = {
    "flag:lam=4": {"flag": {"lam": 4.0}},
}
"""Rules whose price depends on their fields."""
GRAM = "gram"
"""The inner products of all rows, which most rules start from, and no rule."""
REFERRED = ("fltrust",)
"""Rules that are nothing without a reference. The others are measured as in the first round, without."""


@dataclass(frozen=True, eq=False)
class Input:
    """Gradients of which the last `byzantine` are of the opposite sign."""

    rows: Tensor  # (n, d) float32, one matrix
    root: Tensor  # (d,), a gradient of the server's own
    byzantine: int

    @classmethod
    def of(cls, n: int, d: int, seed: int) -> Input:
        """A common direction and as much noise; the Byzantine rows have it reversed."""
        rng, byzantine = torch.Generator().manual_seed(seed), most_byzantine(n)
        common = torch.randn(d, generator=rng, dtype=torch.float32)
        rows = torch.randn(n, d, generator=rng, dtype=torch.float32)
        rows[: n - byzantine] += common
        rows[n - byzantine :] -= common
        return cls(rows, common + 0.1 * torch.randn(d, generator=rng, dtype=torch.float32), byzantine)

    def first(self, columns: int) -> Input:
        return Input(self.rows[:, :columns].contiguous(), self.root[:columns].contiguous(), self.byzantine)

    def double(self) -> Input:
        return Input(self.rows.double(), self.root.double(), self.byzantine)


def _same_groups() -> torch.Generator:
    """Randomness of mixings that is the same for every backend."""
    return torch.Generator().manual_seed(0)


class Case(Protocol):
    """Something that reads rows."""

    @property
    def name(self) -> str: ...
    @property
    def f(self) -> int | None: ...
    def __call__(self, given: Input, backend: str | None, /) -> Tensor: ...
    def passes(self, given: Input, backend: str | None, /) -> float:
        """The fewest passes over all rows that it needs."""
        ...


@dataclass(frozen=True)
class GramAlone:
    """The inner products, which hold for any f."""

    name: str = GRAM
    f: int | None = None

    def __call__(self, given: Input, backend: str | None, /) -> Tensor:
        rows = Rows.of(given.rows)
        return Gram.of(rows, None, backend_for(rows, backend)).inner

    def passes(self, given: Input, backend: str | None, /) -> float:
        return 1.0


@dataclass(frozen=True)
class Pipeline:
    """A rule, perhaps after mixings."""

    name: str
    aggregator: Aggregator
    reference: bool = False

    @property
    def f(self) -> int | None:
        return self.aggregator.f

    def __call__(self, given: Input, backend: str | None, /) -> Tensor:
        aggregator = dataclasses.replace(self.aggregator, backend=backend)
        return aggregator(given.rows, given.root if self.reference else None, _same_groups()).vector

    def passes(self, given: Input, backend: str | None, /) -> float:
        """One for the inner products where the rule wants them, and one for the rows that it uses."""
        aggregator = dataclasses.replace(self.aggregator, backend=backend)
        found = aggregator(given.rows, given.root if self.reference else None, _same_groups())
        if found.weights is not None:
            used = int(found.weights.count_nonzero()) / len(given.rows)
            return used + (found.spread is not None)
        if aggregator.mix:
            return 2.0
        if isinstance(aggregator.rule, Selecting):
            return 1.0 + len(aggregator.rule.select(Gram.of(Rows.of(given.rows)))) / len(given.rows)
        return 1.0


def most_byzantine(n: int) -> int:
    """The most Byzantine rows among n that all rules stand, if they have the time: Bulyan's bound."""
    return (n - 3) // 4


def names(wanted: Sequence[str] | None) -> list[str]:
    """The names of the cases: all, or those asked for; commas between names do as well as spaces."""
    if not wanted:
        return [GRAM, *RULES, *WITH_FIELDS, *MIXED]
    return [name for text in wanted for part in text.split(",") if (name := part.replace(" ", ""))]


def specification(name: str) -> object:
    """The configuration of a name of the table."""
    return WITH_FIELDS.get(name, name)


def case_of(name: str, n: int) -> Case | str:
    """The case for the most Byzantine rows that it stands among n; or why it stands none.

    Raises:
        ConfigError: it names something that there is not.
    """
    if name == GRAM:
        return GramAlone()
    spec, reason = specification(name), None
    for f in range(most_byzantine(n), -1, -1):
        aggregator = aggregator_from(spec, "--rules", f=f)
        reason = aggregator.requires(n)
        if reason is None:
            return Pipeline(name, aggregator, bool(set(name.split(JOINT)) & set(REFERRED)))
    return reason or f"there are no {n} rows"

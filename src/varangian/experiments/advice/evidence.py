"""The evidence: measured accuracies of rules under attacks, as shipped with the package.

Every number comes from `varangian sweep`, and the command that repeats it stands beside it. Accuracies are
shares from 0 to 1, on held-out data at the end of a run, means over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any

POISONING = "label_flip"
"""Attacks of this name change labels only: what they send are honest gradients of wrong samples."""
ALIKE = frozenset({"shared", "private", "iid"})
SORTED = frozenset({"shards", "halves", "extreme"})
"""Partitions in which most workers lack most classes."""


@dataclass(frozen=True)
class Row:
    """A rule under the attacks of a table."""

    aggregator: str
    """As it stands behind `aggregator=` on the command line."""
    clean: float | None
    """Without attackers."""
    attacks: Mapping[str, float]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Row:
        known = {name: value for name, value in plain["attacks"].items() if value is not None}
        return cls(plain["aggregator"], plain.get("clean"), known)

    @property
    def worst(self) -> tuple[float, str]:
        """The lowest accuracy, and the attack that does it."""
        return min((value, name) for name, value in self.attacks.items())

    @property
    def mean(self) -> float:
        """Over the attacks."""
        return sum(self.attacks.values()) / len(self.attacks)

    @property
    def poisoned(self) -> Row:
        """The same rule, under label poisoning alone; it may have no attack left."""
        found = {name: value for name, value in self.attacks.items() if name.startswith(POISONING)}
        return replace(self, attacks=found)


@dataclass(frozen=True)
class Table:
    """Rules under attacks, in one setting."""

    name: str
    """Several settings of one sweep share it."""
    command: str
    """Repeats it."""
    seeds: int
    rounds: int
    n: int
    f: int
    """Workers that attacked."""
    declared: int
    """The `f` that rules were told."""
    partition: Any
    """As in a configuration: a name, or a mapping with its fields."""
    momentum: float
    """Of the workers."""
    participation: str
    data: str
    model: str
    clean: float | None
    """Of the mean without attackers."""
    rows: Mapping[str, Row]
    """By aggregator; each has a value for an attack at least."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Table:
        rows = (Row.of(row) for row in plain["rows"])
        return cls(
            name=plain["name"],
            command=plain["command"],
            seeds=plain["seeds"],
            rounds=plain["rounds"],
            n=plain["n"],
            f=plain["f"],
            declared=plain.get("declared", plain["f"]),
            partition=plain["partition"],
            momentum=plain["momentum"],
            participation=plain.get("participation", "sync"),
            data=plain["data"],
            model=plain["model"],
            clean=plain.get("clean"),
            rows={row.aggregator: row for row in rows if row.attacks},
        )

    @cached_property
    def skew(self) -> float | None:
        return skew_of(self.partition)

    @cached_property
    def poisoned(self) -> Table:
        """The same table, of label poisoning alone."""
        rows = {name: row.poisoned for name, row in self.rows.items()}
        return replace(self, rows={name: row for name, row in rows.items() if row.attacks})

    @property
    def all_poisoned(self) -> bool:
        """Whether no attack of the table changes vectors."""
        return all(name.startswith(POISONING) for row in self.rows.values() for name in row.attacks)

    @property
    def attacks(self) -> int:
        """The most attacks that a rule of the table was measured under."""
        return max((len(row.attacks) for row in self.rows.values()), default=0)

    @property
    def label(self) -> str:
        """Its name and what tells it from the others of that name."""
        return f"{self.name}: f = {self.f}, {words_of(self.partition)}"

    @property
    def setting(self) -> str:
        """The setting in a few words."""
        declared = "" if self.declared == self.f else f" of {self.declared} declared"
        more = "" if self.participation == "sync" else f", {self.participation}"
        return (
            f"{self.data} and {self.model}, n = {self.n}, {self.f}{declared} attack, "
            f"partition {words_of(self.partition)}, worker.momentum={self.momentum:g}{more}"
        )


def words_of(partition: Any) -> str:
    """A partition in words: `dirichlet (alpha 0.1)`."""
    if not isinstance(partition, Mapping):
        return str(partition)
    ((name, fields),) = partition.items()
    inner = ", ".join(f"{key} {value:g}" for key, value in (fields or {}).items())
    return f"{name} ({inner})" if inner else str(name)


def skew_of(partition: Any) -> float | None:
    """How different the data of workers are, to find the nearest setting; None where that is not known.

    From 0, where they are alike, to 1, where workers share no class: 1 / (1 + alpha) for `dirichlet`, which
    is 0.5 with alpha = 1 and 0.91 with alpha = 0.1.
    """
    name, fields = partition, dict[str, Any]()
    if isinstance(partition, Mapping):
        ((name, found),) = partition.items()
        fields = found or {}
    if name in ALIKE:
        return 0.0
    if name == "dirichlet":
        return 1 / (1 + float(fields.get("alpha", 0.5)))
    if name == "gamma_similarity":
        return 1 - float(fields.get("gamma", 0.5))
    return 1.0 if name in SORTED else None


@cache
def evidence() -> tuple[Table, ...]:
    """All tables that are shipped."""
    return tuple(map(Table.of, _read("evidence.json")["tables"]))


@cache
def costs() -> Mapping[str, Any]:
    """Times of rules, as multiples of a mean of the same rows."""
    return _read("costs.json")


def _read(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(
        resources.files("varangian.experiments.advice").joinpath(name).read_text("utf-8")
    )
    return found

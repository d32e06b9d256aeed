"""`varangian list`: the names that a configuration can use, with their fields."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from varangian.aggregators import MIXINGS, RULES
from varangian.aggregators.base import robust
from varangian.aggregators.graphs import GRAPHS
from varangian.aggregators.spec import COMBINATIONS
from varangian.config.schema import field_docs
from varangian.registry import MISSING, Field, Registry, describe_type
from varangian.server.participation import PARTICIPATION
from varangian.server.participation.staleness import STALENESS
from varangian.server.training.optimizers import OPTIMIZERS
from varangian.server.training.schedules import SCHEDULES
from varangian.trackers import TRACKERS
from varangian.worker.attacks import ATTACKS
from varangian.worker.data import DATASETS
from varangian.worker.data.partition import PARTITIONS
from varangian.worker.simulation.availability import AVAILABILITY
from varangian.worker.simulation.delays import DELAYS
from varangian.worker.training.losses import LOSSES
from varangian.worker.training.metrics import METRICS
from varangian.worker.training.models import MODELS

REGISTRIES: dict[str, Registry[Any]] = {
    "aggregators": RULES,
    "mixings": MIXINGS,
    "attacks": ATTACKS,
    "datasets": DATASETS,
    "models": MODELS,
    "losses": LOSSES,
    "metrics": METRICS,
    "partitions": PARTITIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "graphs": GRAPHS,
    "availability": AVAILABILITY,
    "delays": DELAYS,
    "participations": PARTICIPATION,
    "staleness": STALENESS,
    "trackers": TRACKERS,
}
OWN = (
    "module:Class",
    "    Your own, from a module in the current folder or an installed one; its fields are its settings.",
)
REQUIRED = "required"
SHOWN_F = (1, 2, 3)
ENOUGH = 200
"""No rule here needs more rows than this for three Byzantine ones."""


def command(args: argparse.Namespace) -> int:
    """Print every name of one kind, with its fields."""
    registry = REGISTRIES[args.kind]
    lines = [line for name in registry for line in describe_entry(registry, name)]
    if registry is RULES:
        lines += [
            line for name, parts in COMBINATIONS.items() for line in (name, f"    Short for {parts}.")
        ]
    print("\n".join([*lines, *(OWN if registry.own is not None else ())]))
    return 0


def describe_entry(registry: Registry[Any], name: str) -> Iterator[str]:
    """The lines about one name."""
    cls, _ = registry.entry(name)
    docs = field_docs(cls)
    yield name
    yield f"    {registry.summary(name)}"
    for field in registry.fields(name):
        doc = f" {docs[field.name]}" if field.name in docs else ""
        yield f"    {field.name}: {describe_type(field.hint)}; {_default(field)}.{doc}"
    if registry in (RULES, MIXINGS) and not [f for f in registry.fields(name) if _default(f) == REQUIRED]:
        yield f"    {condition(registry, name)}"


def condition(registry: Registry[Any], name: str) -> str:
    """The numbers of rows for which the guarantee holds, found by trying them."""
    if not robust(registry.build(name, name, {"f": 0})):
        return "Promises nothing against Byzantine workers."
    least = [_least_rows(registry, name, f) for f in SHOWN_F]
    if least == [1] * len(SHOWN_F):
        return "Asks for no number of rows."
    counts = ", ".join(str(n or f"over {ENOUGH}") for n in least)
    return f"Holds from n = {counts} rows for f = {', '.join(map(str, SHOWN_F))}."


def _least_rows(registry: Registry[Any], name: str, f: int) -> int | None:
    part = registry.build(name, name, {"f": f})
    return next((n for n in range(1, ENOUGH) if part.requires(n, f) is None), None)


def _default(field: Field) -> str:
    if field.default is MISSING:
        return "default the f of the run" if field.name == "f" else REQUIRED
    value = field.short_default
    return f"default {'null' if value is None else value}"

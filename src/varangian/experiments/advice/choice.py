"""The choice of a rule by its worst case, in the measured settings nearest to the one asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from varangian.config import RunConfig
from varangian.config.overrides import Assignment
from varangian.experiments.advice.evidence import Row, Table
from varangian.experiments.advice.question import Question

NOISE = 0.005
"""Worst cases so near to each other are taken as equal: a few seeds do not tell them apart."""
WEIGHED = "python benchmarks/weights.py"
"""What measures rules with weights."""
WORSE_BY_WEIGHT = "caf"
"""A rule that is worse there than without weights."""
LOSES_TO_HEAVY = ("unit_mean", "geometric_median")
"""Rules that, with no mixing before them, lose 12 points there where a heavy worker sends its vectors with
the sign flipped."""
AS_NEAR = 0.15
"""Of several data sets or partitions, those count whose distance is at most so much more than the least."""
MOMENTUM = 0.9
"""Assumed where it is not known, and advised."""


@dataclass(frozen=True)
class Candidate:
    """A rule that could be used."""

    aggregator: str
    rows: tuple[tuple[Table, Row], ...]
    behind: float
    """The most that its worst case is below the best of a table."""
    kappa: float | None
    """Its robustness coefficient for the n and f asked for."""
    config: RunConfig
    """The run with it."""

    @property
    def mean(self) -> float:
        return sum(row.mean for _, row in self.rows) / len(self.rows)


@dataclass(frozen=True)
class Choice:
    """A rule, and what it was chosen from."""

    tables: tuple[Table, ...]
    """The nearest settings; empty where nothing like it was measured."""
    best: Candidate | None
    equal: tuple[Candidate, ...]
    """Others whose worst case is as good, within the noise."""
    refused: tuple[tuple[str, str], ...]
    """Rules with a better worst case that the run cannot use, and why."""
    compared: int
    """Rules of the tables."""


def choose(question: Question, evidence: Sequence[Table]) -> Choice:
    """The rule with the best worst case.

    Of several settings that are equally near, as where the data are not known, it is the rule that is least
    behind the best rule of each. Among rules that are equal within the noise one with a proven coefficient
    is taken, then the one with the highest mean over attacks.
    """
    tables = nearest(question, evidence)
    if not any(all(name in table.rows for table in tables) for name in _names(tables)):
        tables = tables[:1]  # no rule was measured in all of them
    names = _names(tables)
    behind = {name: _behind(name, tables) for name in names}
    refused, candidates = list[tuple[str, str]](), list[Candidate]()
    for name in sorted(names, key=lambda name: behind[name]):
        if candidates and behind[name] > candidates[0].behind + NOISE:
            break
        if math.isinf(behind[name]):
            continue
        config, reason = question.check(typed(name))
        if config is None:
            refused.append((name, reason))
        elif question.weighed and WORSE_BY_WEIGHT in name.split("+"):
            refused.append((name, f"with weights it gives up twice the weight budget ({WEIGHED})"))
        elif config.aggregator.robust or question.threat == "labels":
            kappa = config.aggregator.kappa(question.n, question.f, question.weights)
            rows = tuple((table, table.rows[name]) for table in tables)
            candidates.append(Candidate(name, rows, behind[name], kappa, config))
        else:
            refused.append((name, "it promises nothing against Byzantine workers"))
    candidates.sort(key=lambda one: (one.kappa is None, -one.mean))
    best = next(iter(candidates), None)
    return Choice(tables, best, tuple(candidates[1:]), tuple(refused), len(names))


def nearest(question: Question, evidence: Sequence[Table]) -> tuple[Table, ...]:
    """The measured settings to go by: the nearest of each data set and partition that may be meant.

    Of tables that are equally near the one with most attacks counts.
    """
    if question.threat == "labels":
        eligible = [one.poisoned for one in evidence if one.poisoned.rows]
    else:
        eligible = [one for one in evidence if not one.all_poisoned]
    eligible = [one for one in eligible if one.declared == one.f]
    if any(one.data == question.data for one in eligible):
        eligible = [one for one in eligible if one.data == question.data]
    groups: dict[Any, Table] = {}
    for table in sorted(eligible, key=lambda table: (distance(question, table), -table.attacks)):
        groups.setdefault((table.data, table.skew if question.skew is None else None), table)
    found = sorted(groups.values(), key=lambda table: distance(question, table))
    return tuple(t for t in found if distance(question, t) <= distance(question, found[0]) + AS_NEAR)


def distance(question: Question, table: Table) -> float:
    """How far a measured setting is from the one asked for; what is not known is no distance."""
    momentum = MOMENTUM if question.momentum is None else question.momentum
    far = 3 * abs(question.f / question.n - table.f / table.n) + abs(momentum - table.momentum)
    far += 0.1 * abs(math.log2(question.n / table.n))
    if question.skew is not None and table.skew is not None:
        far += abs(question.skew - table.skew)
    return far + (question.participation != table.participation)


def differences(question: Question, table: Table) -> Iterator[str]:
    """The differences between the measured setting and the one asked for, in words."""
    if table.n != question.n:
        yield f"n = {table.n}, not {question.n}"
    if table.f * question.n != question.f * table.n:
        yield f"f/n = {table.f / table.n:.2f}, not {question.f / question.n:.2f}"
    if question.momentum is not None and question.momentum != table.momentum:
        yield f"worker.momentum={table.momentum:g}, not {question.momentum:g}"
    if question.participation != table.participation:
        yield f"participation={table.participation}, not {question.participation}"
    if question.skew is not None and question.skew != table.skew:
        yield "other differences between the workers' data"
    if question.data is not None and question.data != table.data:
        yield f"data={table.data}, not {question.data}"


def holds(table: Table, row: Row) -> bool:
    """Whether a rule keeps at least half of the accuracy that the mean has without attack."""
    return table.clean is None or row.worst[0] >= table.clean / 2


def like(table: Table, evidence: Iterable[Table], **changed: Any) -> Table | None:
    """The table of the same setting but for what is changed, as its momentum.

    One of its name, or that with most attacks.
    """
    wanted = {"data": table.data, "model": table.model, "partition": table.partition, "n": table.n}
    wanted |= {"f": table.f, "declared": table.declared, "momentum": table.momentum}
    wanted |= {"participation": table.participation, **changed}
    found = [t for t in evidence if all(getattr(t, k) == v for k, v in wanted.items())]
    return min(found, key=lambda t: (t.name != table.name, -t.attacks), default=None)


def _names(tables: Sequence[Table]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table.rows))


def typed(aggregator: str) -> Any:
    """The value of `aggregator=...` as it is read from a command line."""
    return Assignment.of(f"aggregator={aggregator}").value


def _behind(name: str, tables: Sequence[Table]) -> float:
    """The most by which a rule's worst case is below the best; infinite where a table does not have it."""
    found = 0.0
    for table in tables:
        if name not in table.rows:
            return math.inf
        best = max(row.worst[0] for row in table.rows.values())
        found = max(found, best - table.rows[name].worst[0])
    return found

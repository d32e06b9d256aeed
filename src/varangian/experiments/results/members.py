"""Members of a study: each run, or point of a plan without one, with what it is compared by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

from varangian.config.identity import with_effect
from varangian.experiments.results.labels import flatten, key_of, without_f
from varangian.experiments.results.read import Point, Results, SweepFile
from varangian.experiments.results.run import RUNNING, ResultsError, Run, State

RULE, ATTACK, COUNT = "aggregator", "byzantine.attack", "byzantine.count"
SEEDS = ("seed", "server.seed")
NOT_COMPARED = frozenset({RULE, ATTACK, "byzantine.knows", "names", *SEEDS})
"""Settings with a place of their own in a table."""


@dataclass(frozen=True)
class Member:
    """A run, or a point of a plan without one."""

    rule: Any
    """The aggregator, without the fields `f` that are that of the run."""
    attack: Any
    """The attack with what it knows; None where nobody attacks."""
    settings: Mapping[str, Any]
    """All other settings by path."""
    seed: str
    state: State
    reason: str
    run: Run | None

    @property
    def place(self) -> str:
        """A key that members share which differ in their seed alone."""
        return key_of([self.rule, self.attack, self.settings])


def members_of(results: Results, counts: Set[State]) -> tuple[list[Member], list[str]]:
    """The members of a study, those of plans first and in their order; and what was left out, as sentences.

    Args:
        results: the runs and plans.
        counts: states of runs that have scores; of two runs with all settings in common one of these stays.
    """
    notes: list[str] = []
    members: dict[tuple[str, str], Member] = {}
    repeated = unknown = 0
    for run, config in _with_config(results, notes):
        if config is None:
            unknown += 1
            continue
        member = _member(run, config)
        key = member.place, member.seed
        before = members.get(key)
        if before is None or (before.state not in counts and member.state in counts):
            members[key] = member
        repeated += before is not None and before.run is not None and run is not None
    if repeated:
        notes.append(f"Runs with the settings and the seed of others are left out: {repeated}.")
    if unknown:
        notes.append(f"Runs that are missing or failed, with settings that are not known: {unknown}.")
    return list(members.values()), notes


def _with_config(
    results: Results, notes: list[str]
) -> Iterator[tuple[Run | None, Mapping[str, Any] | None]]:
    """Every run and every missing point with its configuration, those left out by tuning excepted."""
    by_folder = {run.folder.resolve(): run for run in results.runs}
    planned = dict[Any, list[tuple[SweepFile, Point]]]()
    for sweep in results.sweeps:
        for point in sweep.points:
            places = [(sweep.path.parent / (point.id + ending)).resolve() for ending in ("", RUNNING)]
            folder = next((place for place in places if place in by_folder), places[0])
            planned.setdefault(folder, []).append((sweep, point))
    others = Counter[str]()
    for folder, points in planned.items():
        run, (sweep, point) = by_folder.get(folder), points[0]
        if any(sweep.chosen(point) for sweep, point in points):
            yield run, _config_of(run, point)
        else:
            others[str(sweep.tuned)] += 1
    for path, count in others.items():
        notes.append(f"Runs are left out since another {path} was chosen for their rule: {count}.")
    for folder, run in by_folder.items():
        if folder not in planned:
            yield run, _config_of(run, None)


def _config_of(run: Run | None, point: Point | None) -> Mapping[str, Any] | None:
    """The configuration; None where none is known, as of a run that failed before it had a folder."""
    planned = None if point is None else point.config
    if run is None:
        return planned
    try:
        return run.config
    except ResultsError:
        if run.state not in ("error", "unfinished"):
            raise
        return planned  # the folder of one that begins has no configuration for a moment


def _member(run: Run | None, config: Mapping[str, Any]) -> Member:
    f = config.get("f")
    compared = ((path, value) for path, value in flatten(with_effect(config)) if path not in NOT_COMPARED)
    settings = {path: without_f(value, f) for path, value in compared}
    byzantine = cast("Mapping[str, Any]", config.get("byzantine") or {})
    attack = byzantine.get("attack") if byzantine.get("count") else None
    seeds = [config.get("seed"), (config.get("server") or {}).get("seed")]
    return Member(
        rule=without_f(config.get("aggregator"), f),
        attack=None if attack is None else _with_sight(without_f(attack, f), byzantine.get("knows")),
        settings=settings,
        seed="/".join(str(seed) for seed in seeds if seed is not None),
        state="missing" if run is None else run.state,
        reason="it has not been run" if run is None else run.reason,
        run=run,
    )


def _with_sight(attack: Any, knows: Any) -> Any:
    """The attack, with what attackers see as another of its fields."""
    if isinstance(attack, Mapping) and len(cast("Mapping[str, Any]", attack)) == 1:
        ((name, fields),) = cast("Mapping[str, Any]", attack).items()
        return {name: {**fields, "knows": knows}}
    return attack


def headings(members: Sequence[Member], paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths that group members, and those that go with the rule.

    A setting that another one decides, as `workers` where n = 12 + f, is neither.
    """
    keys = {path: [key_of(member.settings.get(path)) for member in members] for path in paths}
    attacked = [i for i, member in enumerate(members) if member.attack is not None]
    rules = [key_of(member.rule) for member in members]

    def asked(path: str) -> Sequence[int]:
        return attacked if path == COUNT else range(len(members))

    def decided(path: str, by: Sequence[str]) -> bool:
        return len({(by[i], keys[path][i]) for i in asked(path)}) == len({by[i] for i in asked(path)})

    paths = [path for path in paths if len({keys[path][i] for i in asked(path)}) > 1]
    kept: list[str] = []
    with_rule = [path for path in paths if decided(path, rules)]
    for path in paths:
        if path not in with_rule and not any(decided(path, keys[other]) for other in kept):
            kept.append(path)
    return kept, with_rule

"""The results of a table: from its runs to one compact JSON file."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evidence.catalogue import ROOT, Table
from evidence.costs import costs
from varangian.experiments.results.analyses.curves import Matched
from varangian.experiments.results.analyses.worst_cases import Cell, Row, WorstCases
from varangian.experiments.results.cases import Case
from varangian.experiments.results.labels import NONE, text_of
from varangian.experiments.results.read import Results, read_runs
from varangian.experiments.results.run import Run
from varangian.experiments.results.study import Study

DIGITS = 4
"""Decimals of a share: a hundredth of a point."""
PLACES = ("data.cifar10.path",)
"""Settings that say where something lies on a machine, and are not written down."""
CLASSES = 10
"""Of both data sets."""


def summarise(table: Table, runs: Path) -> dict[str, Any]:
    """The results of a table, from the folder of its runs.

    Raises:
        ResultsError: the sweep has not begun, or no run is finished.
    """
    results = read_runs([runs / f"{table.name}.sweep.json"])
    study = Study.of(results)
    worst, matched = study.worst_cases(), study.matched()
    written = _written(results)
    groups = [_group(group, study, worst, matched, written) for group in _groups(worst, study)]
    return {
        "table": table.name,
        "title": table.title,
        "command": f"python benchmarks/evidence.py {table.name}",
        "sweep": f"varangian sweep {table.grid.relative_to(ROOT)} --yes",
        "metric": worst.metric,
        **_extent(study, results),
        **_origin(study.runs),
        "settings": _shared(results),
        "attacks": [attack for attack in study.attacks if attack != NONE],
        "impossible": sorted({reason for _, reason in study.left_out}),
        "groups": groups,
        **({"costs": list(costs(study.cases, worst.metric))} if table.costs else {}),
    }


def _extent(study: Study, results: Results) -> dict[str, Any]:
    """How many runs there are, and what they took."""
    states = Counter[str]()
    for case in study.cases:
        states["runs"] += len(case.runs)
        states["early"] += len(case.early)
        states["missing"] += len(case.gaps)
    seconds = sum(float((run.result or {}).get("seconds") or 0.0) for run in study.runs)
    seeds = sorted({seed for case in study.cases for seed in case.seeds}, key=int)
    return {
        "runs": states["runs"],
        "ended_early": states["early"],
        "without_result": states["missing"],
        "seeds": len(seeds),
        "hours_of_one_core": round(seconds / 3600, 2),
    }


def _origin(runs: Sequence[Run]) -> dict[str, Any]:
    """Versions and the machine, as the manifests have them."""
    manifest = runs[0].manifest
    packages = manifest.get("packages") or {}
    return {
        "versions": {
            "varangian": manifest.get("varangian"),
            "python": manifest.get("python"),
            "torch": packages.get("torch"),
        },
        "commits": sorted({str(run.manifest["git"]) for run in runs if run.manifest.get("git")}),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
    }


def _processor() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _shared(results: Results) -> dict[str, Any]:
    """The settings of the grid that all runs share, as they are written."""
    base = json.loads(results.sweeps[0].path.read_text())["grid"]["base"]
    for path in PLACES:
        *sections, name = path.split(".")
        inside = base
        for section in sections:
            inside = inside.get(section) if isinstance(inside, dict) else None
        if isinstance(inside, dict):
            inside.pop(name, None)
    return {key: value for key, value in base.items() if key != "output"}


def _written(results: Results) -> dict[str, str]:
    """By the identity of a run its rule, as it stands after `aggregator=` on a command line."""
    found = dict[str, str]()
    for sweep in results.sweeps:
        for point in sweep.points:
            rule = point.settings.get("aggregator") or (point.config or {}).get("aggregator")
            found[point.id] = text_of(rule)
    return found


def _groups(worst: WorstCases, study: Study) -> list[tuple[str, ...]]:
    """The settings in which there is a run."""
    begun = {case.group for case in study.cases if case.runs}
    return [group for group in dict.fromkeys(row.group for row in worst.rows) if group in begun]


def _group(
    group: tuple[str, ...],
    study: Study,
    worst: WorstCases,
    matched: Sequence[Matched],
    written: Mapping[str, str],
) -> dict[str, Any]:
    """All rules in one setting."""
    cases = [case for case in study.cases if case.group == group]
    rows = [row for row in worst.rows if row.group == group]
    mean = next((row for row in rows if row.rule == "mean"), None)
    clean = None if mean is None else mean.clean
    at_equal = {one.attack: one for one in matched if one.group == group}
    settings = _settings(cases)
    honest = {row.rule: _steps(_without_attackers(study, row)) for row in rows}
    of_mean = honest.get("mean")
    return {
        **settings,
        "varying": {
            path: _words(settings["partition"]) if path == "partition" else value
            for path, value in zip(worst.by, group, strict=True)
        },
        "chance": 1 / CLASSES,
        "clean": _rounded(clean.mean if clean else None),
        "clean_std": _rounded(clean.std if clean else None),
        "rows": [_row(row, cases, at_equal, written, honest[row.rule], of_mean) for row in rows],
    }


def _settings(cases: Sequence[Case]) -> dict[str, Any]:
    """The main settings of a group."""
    attacked = [case for case in cases if not case.clean and case.runs] or [
        case for case in cases if case.runs
    ]
    config = attacked[0].runs[0].config
    return {
        "n": config["workers"],
        "f": config["byzantine"]["count"],
        "declared": config["f"],
        "partition": _plain(config["partition"]),
        "momentum": config["worker"]["momentum"],
        "participation": next(iter(config["participation"])),
        "model": next(iter(config["model"])),
        "data": next(iter(config["data"])),
        "rounds": config["rounds"],
    }


def _plain(value: Mapping[str, Any]) -> Any:
    """`iid` for `{iid: {}}`."""
    ((name, fields),) = value.items()
    return value if fields else name


def _words(value: Any) -> str:
    """`dirichlet 0.1` for `{dirichlet: {alpha: 0.1}}`."""
    if not isinstance(value, Mapping):
        return str(value)
    ((name, fields),) = value.items()
    return " ".join([name, *map(text_of, fields.values())])


def _row(
    row: Row,
    cases: Sequence[Case],
    at_equal: Mapping[str, Matched],
    written: Mapping[str, str],
    honest: Steps | None,
    of_mean: Steps | None,
) -> dict[str, Any]:
    own = [case for case in cases if case.rule == row.rule]
    means = [cell.mean for cell in row.cells.values() if cell.mean is not None]
    matched = [
        score
        for attack, one in at_equal.items()
        if attack != NONE and (score := one.scores.get(row.rule, (None, None))[0]) is not None
    ]
    length = at_equal[row.worst_attack].lengths.get(row.rule) if row.worst_attack in at_equal else None
    return {
        "aggregator": _name(own, written),
        **row.carried,
        "clean": _rounded(row.clean.mean if row.clean else None),
        "worst": _rounded(row.worst),
        "worst_attack": row.worst_attack,
        "worst_run": _rounded(row.worst_run),
        "mean": _rounded(statistics.fmean(means) if means else None),
        "at_equal_length": _rounded(min(matched, default=None)),
        "step": None if honest is None or of_mean is None else _ratio(honest.median, of_mean.median),
        "length": None if length is None or of_mean is None else _ratio(length, of_mean.all),
        "complete": row.complete,
        "attacks": {attack: _cell(cell) for attack, cell in row.cells.items()},
    }


@dataclass(frozen=True)
class Steps:
    """The length of the steps of runs without attackers: learning rate times norm of the aggregate."""

    median: float
    """Over the rounds of a run, as the mean over seeds."""
    all: float
    """Of all steps of a run together, as the mean over seeds."""


def _without_attackers(study: Study, row: Row) -> Sequence[Run]:
    """The runs of a rule without attackers, which have no number of attackers of their own."""
    places = [i for i in range(len(row.group)) if i not in study.shared]
    for case in study.cases:
        if case.clean and case.rule == row.rule and all(case.group[i] == row.group[i] for i in places):
            return case.runs
    return ()


def _steps(runs: Sequence[Run]) -> Steps | None:
    lengths = [steps for run in runs if len(steps := _lengths(run))]
    if not lengths:
        return None
    medians, sums = ([float(one) for one in map(of, lengths)] for of in (np.median, np.sum))
    return Steps(statistics.fmean(medians), statistics.fmean(sums))


def _lengths(run: Run) -> NDArray[np.float64]:
    """The length of each step of a run."""
    (rounds, rate), (others, norm) = run.columns("lr"), run.columns("update_norm")
    return rate[np.isin(rounds, others)] * norm[np.isin(others, rounds)]


def _ratio(length: float, of_mean: float) -> float | None:
    """A length in lengths of the mean; None where that is 0, or either is not finite."""
    ratio = length / of_mean if of_mean else math.inf
    return float(f"{ratio:.3g}") if math.isfinite(ratio) else None


def _name(own: Sequence[Case], written: Mapping[str, str]) -> str:
    ids = (run.id for case in own for run in case.runs)
    return next((written[id] for id in ids if id in written), own[0].rule)


def _cell(cell: Cell) -> list[Any]:
    """Mean, standard deviation and worst over seeds, the number of runs; and of those that ended early."""
    worst = min(cell.values, default=None)
    numbers = [*map(_rounded, (cell.mean, cell.std, worst)), len(cell.values)]
    return [*numbers, len(cell.early)] if cell.early else numbers


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)

"""The account of the runs: how each is made again, what was tuned, what failed, settings and versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any

from varangian.config.yaml_text import dump
from varangian.experiments.report.rendering import Cell, Score, Section, Table, render, setting_of
from varangian.experiments.report.reproduce import command_of
from varangian.experiments.results.cases import Case, Gap, final
from varangian.experiments.results.labels import flatten, key_of, text_of
from varangian.experiments.results.read import Results
from varangian.experiments.results.run import ResultsError, Run
from varangian.experiments.results.study import Study
from varangian.registry import join

ROWS = 500
"""Most runs in the table; all are in its file."""
COMMANDS = 2000
"""Of more runs the file has no commands, which would be half of the page."""
REASON = 200
"""Characters of a reason that are shown; the file has all of it."""

STATES = {"failed": "ended early", "error": "failed"}
"""Words for states of runs: one that ended before its last round has a result, one with an error none."""


def sections(results: Results, study: Study) -> Iterator[Section]:
    """Sections at the end: failed runs, tuned values, commands, settings."""
    gaps = [(case, gap) for case in study.cases for gap in (*case.gaps, *case.early)]
    if gaps or study.left_out:
        title = "Runs that failed, ended early or are missing" if gaps else "Points that were not run"
        yield Section("failed", title, _failed(study, gaps))
    if any(sweep.choices for sweep in results.sweeps):
        yield Section("tuned", "Tuned values", _tuned(results))
    yield Section("runs", "Runs and their commands", _runs(results, study))
    yield Section("settings", "Settings and versions", _settings(results))


def _failed(study: Study, gaps: Sequence[tuple[Case, Gap]]) -> str:
    all_rows = [
        {
            "rule": case.rule,
            "attack": "no attack" if case.clean else case.attack,
            "setting": setting_of(study, case.group),
            "seed": gap.seed,
            "state": STATES.get(gap.state, gap.state),
            "reason": gap.reason,
            "folder": "" if gap.run is None else str(gap.run.folder),
        }
        for case, gap in gaps
    ]
    reasons: dict[str, list[str]] = {}
    for settings, reason in study.left_out:
        reasons.setdefault(reason, []).append(_flat(settings))
    columns = ("rule", "attack", "setting", "seed", "state", "reason", "folder")
    table = Table("failed-data", columns, [[row[name] for name in columns] for row in all_rows])
    rows = _by_case(all_rows)
    return render(
        "failed.html",
        rows=rows[:ROWS],
        more=max(0, len(rows) - ROWS),
        left_out=reasons,
        by=study.by,
        table=table,
    )


def _by_case(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A row for runs that differ in their seed alone and ended alike, with the reason of the first."""
    cases: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("rule", "attack", "setting", "state"))
        cases.setdefault(key, []).append(row)
    found: list[dict[str, str]] = []
    for members in cases.values():
        reason = shorten(members[0]["reason"], REASON, placeholder=" ...")
        seeds = ", ".join(row["seed"] for row in members)
        found.append({**members[0], "seed": seeds, "reason": reason, "whole": members[0]["reason"]})
    return found


def _tuned(results: Results) -> str:
    rows = [
        [sweep.name, str(sweep.tuned), _flat(choice.settings), text_of(choice.value)]
        for sweep in results.sweeps
        for choice in sweep.choices
    ]
    columns = ("sweep", "setting", "of", "chosen")
    return render("tuned.html", rows=rows, table=Table("tuned-data", columns, rows))


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={text_of(value)}" for path, value in settings.items())


def _runs(results: Results, study: Study) -> str:
    score = Score(study.metric)
    places = {run.folder: case for case in study.cases for run in (*case.runs, *_without_result(case))}
    parents = list(dict.fromkeys(str(run.folder.parent) for run in results))
    order = {folder: i for i, folder in enumerate(places)}
    rows: list[dict[str, Any]] = []
    for run in sorted(results, key=lambda run: order.get(run.folder, len(order))):
        config = _config(run)
        case, result = places.get(run.folder), run.result or {}
        value = final(run, study.metric) if run.state in ("finished", "failed") else None
        rows.append(
            {
                "folder": str(run.folder),
                "name": run.folder.name if len(parents) == 1 else str(run.folder),
                "state": STATES.get(run.state, run.state),
                "rule": case.rule if case else "",
                "attack": ("no attack" if case.clean else case.attack) if case else "",
                "setting": setting_of(study, case.group) if case else "",
                "seed": str(config.get("seed", "")),
                "score": value,
                "shown": score.text(value),
                "seconds": result.get("seconds"),
                "digest": str(result.get("digest") or ""),
                "command": command_of(config) or f"varangian run {run.folder}/config.yaml",
            }
        )
    commands = len(rows) <= COMMANDS
    columns = (
        *("folder", "state", "rule", "attack", "setting", "seed", "score", "seconds", "digest"),
        *(("command",) if commands else ()),
    )
    cells: list[list[Cell]] = [[row[name] for name in columns] for row in rows]
    return render(
        "runs.html",
        rows=rows[:ROWS],
        more=max(0, len(rows) - ROWS),
        commands=commands,
        score=score,
        by=study.by,
        parents=parents,
        table=Table("runs-data", columns, cells, ("score", "seconds")),
    )


def _without_result(case: Case) -> list[Run]:
    return [gap.run for gap in (*case.gaps, *case.early) if gap.run is not None]


def _settings(results: Results) -> str:
    configs = [config for config in map(_config, results) if config]
    flat = [dict(flatten(config)) for config in configs]
    paths = dict.fromkeys(path for one in flat for path in one)
    distinct = {path: {key_of(one.get(path)): one.get(path) for one in flat} for path in paths}
    common = {path: next(iter(found.values())) for path, found in distinct.items() if len(found) == 1}
    varying = {
        path: [text_of(value) for value in found.values()]
        for path, found in distinct.items()
        if len(found) > 1 and path != "output"
    }
    common.pop("output", None)
    return render(
        "settings.html",
        common=dump(_nested(common)) if common else "",
        varying=varying,
        versions=_versions(results),
        one=len(results) == 1,
    )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        place = nested
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return nested


def _versions(results: Results) -> list[tuple[str, str]]:
    """Facts about the program and the machine; several values where runs differ."""
    found: dict[str, Counter[str]] = {}
    for run in results:
        manifest = run.manifest
        facts = {
            name: manifest.get(name)
            for name in ("varangian", "git", "python", "platform", "cpus", "kernels", "instructions")
        }
        packages = manifest.get("packages")
        facts |= packages if isinstance(packages, dict) else {}
        facts |= {join("threads", key): value for key, value in (manifest.get("threads") or {}).items()}
        for name, value in facts.items():
            if value is not None:
                found.setdefault(name, Counter())[str(value)] += 1
    return [
        (name, next(iter(values)) if len(values) == 1 else _counted(values))
        for name, values in found.items()
    ]


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value} ({count} runs)" for value, count in values.items())


def _config(run: Run) -> Mapping[str, Any]:
    """The configuration; empty of a run that failed before it had one."""
    try:
        return run.config
    except ResultsError:
        if run.state != "error":
            raise
        return {}

"""Trust over time: the weight of each worker in each round, and who was left out, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from varangian.cli.views.summary import bound_of_f
from varangian.experiments.report import specs
from varangian.experiments.report.rendering import NOTHING, Cell, Section, Table, render, setting_of
from varangian.experiments.results.analyses.trust import Kind, Trust, trust
from varangian.experiments.results.run import ResultsError, Run
from varangian.experiments.results.study import Study

COLUMNS = 120
CELLS = 20_000
"""Most cells of all timelines together: of more runs, only the first are shown."""
SEVERITY: tuple[Kind, ...] = ("revoked", "dropped", "gated", "declined", "missing", "absent")
"""Of several marks in a cell the first of these is shown."""
COLUMN_NAMES = ("run", "worker", "attacks", "first round", "last round", "weight", "left out", "reason")


@dataclass(frozen=True)
class Line:
    """A worker in the table of a run."""

    name: str
    attacks: bool
    weight: str
    share: str
    counts: tuple[int, ...]
    """Rounds in which it was left out, by kind."""
    reason: str
    spans: int = 1
    """Lines that share this reason; 0 of those after the first of them."""


@dataclass(frozen=True)
class Shown:
    """A run in the timeline."""

    label: str
    folder: str
    lines: tuple[Line, ...]
    weighed: bool
    skipped: int
    share: str
    """The part of the weight that attackers had."""
    faults: str
    """A lower bound of f, from the workers that were proven faulty."""


def sections(study: Study) -> Iterator[Section]:
    """The timeline of one run of each case."""
    chosen = list(_chosen(study))
    timelines: list[tuple[str, Trust]] = []
    silent: list[str] = []
    cells = 0
    for rule, label, run in chosen:
        try:
            found = trust(run, COLUMNS)
        except ResultsError:
            if run.running:
                continue  # it has no records yet
            raise
        cells += len(found.workers) * len(found.first)
        if timelines and cells > CELLS:
            break
        if found.weighed or found.marks:
            timelines.append((label, found))
        else:
            silent.append(rule)
    if not timelines:
        if silent:
            yield Section(
                "trust", "Trust over time", render("no_timeline.html", silent=dict.fromkeys(silent))
            )
        return
    rows = [row for i, (_, one) in enumerate(timelines, start=1) for row in _rows(i, one)]
    found_kinds = {mark.kind for _, one in timelines for marks in one.marks.values() for mark in marks}
    kinds: list[Kind] = [kind for kind in SEVERITY if kind in found_kinds]
    signed = any((one.weights < 0).any() for _, one in timelines)
    html = render(
        "timeline.html",
        runs=[_shown(label, one, kinds) for label, one in timelines],
        left_over=len(chosen) - len(timelines) - len(silent),
        silent=dict.fromkeys(silent),
        several=len(study.runs) > 1,
        thinned=any(one.first != one.last for _, one in timelines),
        kinds=kinds,
        signed=signed,
        spec=specs.timeline(max(len(one.workers) for _, one in timelines), list(kinds), signed=signed),
        table=Table("trust-data", COLUMN_NAMES, rows, ("first round", "last round", "weight")),
    )
    yield Section("trust", "Trust over time", html)


def _chosen(study: Study) -> Iterator[tuple[str, str, Run]]:
    """The worst run of each rule, then a run of each other case: the rule, a name for the run, and it."""
    cases = {run.folder: case for case in study.cases for run in case.runs}
    chosen = [(cases[run.folder], run) for _, run in study.worst_runs()]
    told = [case for case, _ in chosen]
    others = [case for case in study.cases if case.runs and case not in told]
    chosen += [(case, case.runs[0]) for case in sorted(others, key=lambda case: case.clean)]
    for case, run in chosen:
        attack = "no attack" if case.clean else f"under {case.attack}"
        words = [f"{case.rule} {attack}", *([setting_of(study, case.group)] if case.group else [])]
        if "seed" in study.varying:
            words.append(f"seed {case.seeds[case.runs.index(run)]}")
        yield case.rule, ", ".join(words), run


def _rows(number: int, found: Trust) -> Iterator[list[Cell]]:
    for i, worker in enumerate(found.workers):
        attacks = "yes" if worker in found.attackers else ""
        for j, (first, last) in enumerate(zip(found.first, found.last, strict=True)):
            marks = found.marks.get((i, j), ())
            weight = float(found.weights[i, j])
            worst = min(marks, key=lambda mark: SEVERITY.index(mark.kind), default=None)
            reason = "" if worst is None else worst.reason
            if len(marks) > 1:
                reason += f" (left out in {len(marks)} of these rounds)"
            yield [
                *(str(number), worker, attacks, first, last),
                float(f"{weight:.4g}") if math.isfinite(weight) else None,
                *("" if worst is None else worst.kind, reason),
            ]


def _shown(label: str, found: Trust, kinds: Sequence[Kind]) -> Shown:
    lines: list[Line] = []
    sizes = [[abs(value) for value in row if math.isfinite(value)] for row in found.weights.tolist()]
    total = sum(map(sum, sizes))
    for i, worker in enumerate(found.workers):
        marks = [mark for j in range(len(found.first)) for mark in found.marks.get((i, j), ())]
        counts = Counter(mark.kind for mark in marks)
        told = [mark.reason for mark in marks if mark.kind not in ("missing", "absent")]
        own = [value for value in found.weights[i].tolist() if math.isfinite(value)]
        lines.append(
            Line(
                name=worker,
                attacks=worker in found.attackers,
                weight=f"{sum(own) / len(own):.4f}" if own else NOTHING,
                share=f"{100 * sum(sizes[i]) / total:.1f}" if total > 0 else NOTHING,
                counts=tuple(counts[kind] for kind in kinds),
                reason=told[-1] if told else "",
            )
        )
    share = found.attacking_share
    faulty = {
        found.workers[i] for (i, _), marks in found.marks.items() if any(m.kind == "dropped" for m in marks)
    }
    return Shown(
        label=label,
        folder=str(found.run.folder),
        lines=_with_spans(lines),
        weighed=found.weighed,
        skipped=len(found.skipped),
        share="" if share is None or not found.attackers else f"{100 * share:.1f} %",
        faults=bound_of_f(len(faulty), int(found.run.config["f"])) if faulty else "",
    )


def _with_spans(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Lines one after another with the same reason share its cell."""
    found: list[Line] = []
    for _, group in groupby(lines, key=lambda line: line.reason):
        members = list(group)
        found += [replace(line, spans=0 if i else len(members)) for i, line in enumerate(members)]
    return tuple(found)

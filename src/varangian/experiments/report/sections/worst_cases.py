"""The table of worst cases: a rule in each row, an attack in each column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from varangian.experiments.report.rendering import NOTHING, Score, Section, Table, render, shade
from varangian.experiments.report.rendering import Cell as Value
from varangian.experiments.results.analyses.worst_cases import Cell, Row, WorstCases
from varangian.experiments.results.study import Study

WHEN = {"final": "at the end of the run", "best": "at its best evaluation"}
EARLY = "\N{DAGGER}"
"""Marks a cell with runs that ended before their last round."""


@dataclass(frozen=True)
class Heading:
    """A column that can be sorted by; the order that a first click gives."""

    title: str
    number: bool = False
    first: str = "ascending"


@dataclass(frozen=True)
class Shown:
    """A cell with a number."""

    text: str
    small: str = ""
    value: float | str = ""
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A rule in one setting."""

    rule: str
    texts: tuple[str, ...]
    cells: tuple[Shown, ...]


def sections(study: Study) -> Iterator[Section]:
    """A table for the first score of the study; nothing where there is nothing to compare."""
    worst = study.worst_cases()
    if not worst.rows or (len(worst.rows) == 1 and len(worst.attacks) < 2):
        return
    yield Section("worst-cases", "Worst cases", _html(worst))


def _html(worst: WorstCases) -> str:
    cells = [cell for row in worst.rows for cell in (*row.cells.values(), row.clean) if cell]
    values = [cell.mean for cell in cells]
    score = Score(worst.metric)
    best_first = "descending" if worst.better == "higher" else "ascending"
    has_clean = any(row.clean for row in worst.rows)
    single = any(len(cell.values) > 1 for cell in cells)
    numbers = ["no attack"] if has_clean else []
    if worst.attacks:
        numbers += ["worst case", *(["worst single run"] if single else [])]
    numbers += worst.attacks
    columns = [Heading("rule"), *map(Heading, (*worst.by, *worst.carried))]
    columns += [Heading(title, True, best_first) for title in numbers]
    known = [value for value in values if value is not None]
    low, high = (0.0, 1.0) if score.percent else (min(known, default=0.0), max(known, default=1.0))
    lines = [_line(worst, row, score, low, high, has_clean=has_clean, single=single) for row in worst.rows]
    when = (
        WHEN[worst.at] if isinstance(worst.at, str) else f"as the mean of the last {worst.at} evaluations"
    )
    return render(
        "worst_cases.html",
        id="worst-cases",
        score=score,
        when=when,
        has_clean=has_clean,
        columns=columns,
        rows=lines,
        caption=f"{score.heading}, {score.unit}.",
        direction="Higher is better." if worst.better == "higher" else "Lower is better.",
        incomplete=not all(row.complete for row in worst.rows),
        early=EARLY if any(cell.early for cell in cells) else "",
        table=table_of(worst),
    )


def _line(
    worst: WorstCases, row: Row, score: Score, low: float, high: float, *, has_clean: bool, single: bool
) -> Line:
    cells: list[Shown] = []
    if has_clean:
        cells.append(_shown(row.clean, score, low, high, best=worst.is_best(row, "none")))
    if worst.attacks:
        best = row.complete and worst.is_best(row)
        style = f"by {shade(row.worst, low, high)}{' worst' if best else ''}"
        bound = "" if row.complete or row.worst is None else "≤ " if worst.better == "higher" else "≥ "
        text = f"{bound}{score.text(row.worst)}"
        cells.append(Shown(text, row.worst_attack or "", _value(row.worst), style))
        if single:
            attack, seed = row.worst_run_at or ("", "")
            small = f"{attack}, seed {seed}" if row.worst_run_at else ""
            cells.append(Shown(score.text(row.worst_run), small, _value(row.worst_run), "by"))
    for attack in worst.attacks:
        lowest = attack == row.worst_attack and len(worst.attacks) > 1
        best = worst.is_best(row, attack)
        cells.append(_shown(row.cells.get(attack), score, low, high, lowest=lowest, best=best))
    carried = (row.carried.get(path, "") for path in worst.carried)
    return Line(row.rule, (*row.group, *carried), tuple(cells))


def _shown(
    cell: Cell | None, score: Score, low: float, high: float, *, lowest: bool = False, best: bool = False
) -> Shown:
    if cell is None:
        return Shown(NOTHING, style="empty")
    small = "" if cell.std is None else f"± {score.text(cell.std)}"
    if cell.gaps:
        small += f" ({len(cell.values)} of {cell.planned})"
    if cell.early:
        small += f" {EARLY}"
    reasons = dict.fromkeys(f"seed {gap.seed}: {gap.reason}" for gap in (*cell.gaps, *cell.early))
    values = [f"seed {s}: {score.text(v)}" for s, v in zip(cell.seeds, cell.values, strict=True)]
    style = f"{shade(cell.mean, low, high)}{' lowest' if lowest else ''}{' worst' if best else ''}"
    title = "; ".join([*values, *reasons])
    return Shown(score.text(cell.mean), small.strip(), _value(cell.mean), style, title)


def _value(number: float | None) -> float | str:
    """The number that a column is sorted by; infinity in the spelling of JavaScript."""
    return "" if number is None else str(number).replace("inf", "Infinity")


def table_of(worst: WorstCases) -> Table:
    """The numbers of the table, a row for each cell."""
    columns = ("rule", *worst.by, *worst.carried, "attack", "mean", "std", "runs", "planned")
    rows: list[list[Value]] = []
    for row in worst.rows:
        carried = [row.carried.get(path, "") for path in worst.carried]
        cells = {**({"none": row.clean} if row.clean else {}), **row.cells}
        for attack, cell in cells.items():
            place: list[Value] = [row.rule, *row.group, *carried, attack]
            rows.append([*place, cell.mean, cell.std, len(cell.values), cell.planned])
        if row.worst is not None:
            rows.append([row.rule, *row.group, *carried, "worst case", row.worst, None, None, None])
    return Table("worst-cases-data", columns, rows, ("mean", "std", "runs", "planned"))

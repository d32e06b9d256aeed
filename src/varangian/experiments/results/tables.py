"""Tables of a study: for the terminal, as LaTeX, and the data of every figure as CSV.

Names and reasons are written by others: in a terminal they are escaped, in LaTeX too, and in CSV a text
that a spreadsheet would take for a formula is quoted.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from varangian.cli.views.terminal import align, printable
from varangian.experiments.results.analyses.worst_cases import Cell, Row, WorstCases
from varangian.experiments.results.cases import At, Case
from varangian.experiments.results.labels import NONE

if TYPE_CHECKING:
    from rich.table import Table

    from varangian.experiments.results.analyses.curves import Curve, Matched
    from varangian.experiments.results.analyses.heat_maps import HeatMap
    from varangian.experiments.results.analyses.trust import Trust
    from varangian.experiments.results.study import Study

WORST, CLEAN = "worst", "no attack"
TEXT = 300
"""Most characters of a name or a reason in a table."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {sign: f"\\{sign}" for sign in "&%$#_"}


def is_share(metric: str) -> bool:
    """Whether a score is shown in per cent."""
    return "accuracy" in metric or metric.endswith(("attack_success", "backdoor_success"))


def score_text(value: float | None, metric: str) -> str:
    """A score as it is shown: in per cent, or to four digits."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if is_share(metric):
        return f"{100 * value:.1f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def heading(worst: WorstCases) -> str:
    """The heading of a table: which numbers it has."""
    name, _, when = worst.heading.partition(", ")
    what = f"{name} in %" if is_share(worst.metric) else name
    several = any(cell.std is not None for cell in _shown(worst))
    over = "mean ± standard deviation over seeds" if several else "one run each"
    return printable(f"{what}, {when}; {over}", TEXT)


def legend(worst: WorstCases) -> list[str]:
    """The meaning of the marks that stand in a table."""
    said = [f"{WORST}: the {_direction(worst)} over attacks of the mean over seeds"]
    if worst.best:
        said.append("*: the best of the rules")
    if lacking := next((cell for cell in _shown(worst) if cell.gaps), None):
        part = f"({len(lacking.values)}/{lacking.planned})"
        said.append(f"{part}: {len(lacking.values)} of {lacking.planned} planned runs have a result")
    if any(cell.early for cell in _shown(worst)):
        said.append("!: with runs that ended before their last round, and their score until then")
    return said


def cells(worst: WorstCases) -> tuple[list[str], list[list[str]]]:
    """The table of worst cases as texts: its headings, and its rows."""
    columns = _columns(worst)
    names = [CLEAN if attack == NONE else attack for attack in columns]
    headings = [*worst.by, "rule", *worst.carried, *names, *([WORST] if worst.attacks else [])]
    return [printable(name, TEXT) for name in headings], [_cells(worst, row) for row in worst.rows]


def plain(worst: WorstCases) -> str:
    """The table of worst cases as lines of text."""
    headings, rows = cells(worst)
    names = range(1 + len(worst.by) + len(worst.carried))
    return "\n".join([heading(worst), *align([headings, *rows], left=names), *legend(worst)])


def rich_table(worst: WorstCases) -> Table:
    """The table of worst cases for a terminal."""
    from rich.table import Table
    from rich.text import Text

    headings, rows = cells(worst)
    table = Table(
        title=Text(heading(worst)), caption=Text("\n".join(legend(worst))), caption_justify="left"
    )
    names = 1 + len(worst.by) + len(worst.carried)
    for i, name in enumerate(headings):
        table.add_column(Text(name), justify="left" if i < names else "right", overflow="fold")
    for row, texts in zip(worst.rows, rows, strict=True):
        columns = [*[""] * names, *_columns(worst), *([None] if worst.attacks else [])]
        table.add_row(
            *(
                Text(text, style="bold" if column != "" and worst.is_best(row, column) else "")
                for text, column in zip(texts, columns, strict=True)
            )
        )
    return table


def latex(worst: WorstCases) -> str:
    """The table of worst cases as a `tabular` of LaTeX, for the package booktabs; the best are bold."""
    columns = _columns(worst)
    names = [*worst.by, "Rule", *worst.carried]
    numbers = ["No attack" if attack == NONE else attack for attack in columns]
    titles = [*names, *numbers, *(["Worst case"] if worst.attacks else [])]
    lines = [
        f"% {heading(worst)}.",
        r"% Needs \usepackage{booktabs}.",
        f"\\begin{{tabular}}{{{'l' * len(names)}{'r' * (len(titles) - len(names))}}}",
        r"\toprule",
        " & ".join(map(escape_latex, titles)) + r" \\",
        r"\midrule",
    ]
    for before, row in zip((None, *worst.rows), worst.rows, strict=False):
        if before is not None and before.group != row.group:
            lines.append(r"\midrule")
        texts = _names(worst, row)
        values = [_latex_cell(_of(row, attack), worst, row, attack) for attack in columns]
        if worst.attacks:
            values.append(_latex_worst(worst, row))
        lines.append(" & ".join([*map(escape_latex, texts), *values]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if any(cell.gaps for cell in _shown(worst)) or not all(row.complete for row in worst.rows):
        lines.insert(1, r"% $^{\dagger}$: some of the planned runs have no result.")
    if any(cell.early for cell in _shown(worst)):
        lines.insert(1, r"% $^{\ddagger}$: some runs ended before their last round, with this score.")
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(sign, sign) for sign in printable(text, TEXT))


def csv_text(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV: nothing for None, all digits of a number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_safe(name) for name in headings])
    writer.writerows([_safe(value) for value in row] for row in rows)
    return text.getvalue()


def worst_cases_csv(worst: WorstCases) -> str:
    """The table of worst cases as CSV, with all digits."""
    columns = _columns(worst)
    headings = [*worst.by, "rule", *worst.carried]
    for attack in columns:
        headings += [f"{attack} {what}" for what in ("mean", "std", "runs", "planned")]
    headings += ["worst", "worst attack", "worst run", "worst run attack", "worst run seed", "complete"]

    def row_of(row: Row) -> Iterator[Any]:
        yield from _names(worst, row)
        for attack in columns:
            cell = _of(row, attack)
            yield from (
                (None, None, 0, 0)
                if cell is None
                else (cell.mean, cell.std, len(cell.values), cell.planned)
            )
        where = row.worst_run_at or ("", "")
        yield from (row.worst, row.worst_attack, row.worst_run, *where, row.complete)

    return csv_text(headings, map(list, map(row_of, worst.rows)))


def runs_csv(study: Study, at: At = "final") -> str:
    """Every run of a study with its scores, those that failed or are missing included."""

    def rows(case: Case) -> Iterator[list[Any]]:
        scores = [case.scores(metric, at) for metric in study.metrics]
        for i, (seed, run) in enumerate(zip(case.seeds, case.runs, strict=True)):
            values = [column[i] for column in scores]
            yield [case.rule, case.attack, *case.group, seed, run.state, *values, run.reason, run.folder]
        for gap in case.gaps:
            folder = None if gap.run is None else gap.run.folder
            values = [None] * len(study.metrics)
            yield [case.rule, case.attack, *case.group, gap.seed, gap.state, *values, gap.reason, folder]

    headings = ["rule", "attack", *study.by, "seed", "state", *study.metrics, "reason", "folder"]
    return csv_text(headings, (row for case in study.cases for row in rows(case)))


def curves_csv(curves: Iterable[Curve], by: Sequence[str], x: str = "round") -> str:
    """Curves as CSV, a line for each evaluation; `x` names what goes across."""
    across = [] if x == "round" else [x]
    headings = ["rule", "attack", *by, "round", *across, "mean", "std", "low", "high", "seeds"]
    return csv_text(
        headings,
        (
            [
                *(curve.rule, curve.attack, *curve.group, curve.rounds[i]),
                *([curve.x[i]] if across else []),
                *(curve.mean[i], curve.std[i], curve.low[i], curve.high[i], curve.seeds),
            ]
            for curve in curves
            for i in range(len(curve.rounds))
        ),
    )


def matched_csv(found: Iterable[Matched], by: Sequence[str]) -> str:
    """Scores after steps of the same length as CSV."""
    return csv_text(
        ["attack", *by, "rule", "length", "mean", "std", "whole length"],
        (
            [one.attack, *one.group, rule, one.length, mean, std, one.lengths[rule]]
            for one in found
            for rule, (mean, std) in one.scores.items()
        ),
    )


def heat_map_csv(shown: HeatMap) -> str:
    """A heat map as CSV, a line for each of its squares."""
    names = [name for name in (shown.x_title, shown.y_title) if name]
    of = "rule" if shown.rule is None else "attack"
    return csv_text(
        [*names, "value", of, "complete"],
        (
            [
                *([x, y] if shown.y_title else [x]),
                *((None, None, None) if square is None else (square.value, square.of, square.complete)),
            ]
            for y, line in zip(shown.y, shown.squares, strict=True)
            for x, square in zip(shown.x, line, strict=True)
        ),
    )


def trust_csv(shown: Trust) -> str:
    """A trust timeline as CSV, a line for each worker and column."""

    def row(worker: int, column: int) -> list[Any]:
        weight = float(shown.weights[worker, column])
        marks = shown.marks.get((worker, column), ())
        return [
            *(shown.workers[worker], shown.workers[worker] in shown.attackers),
            *(shown.first[column], shown.last[column]),
            None if math.isnan(weight) else weight,
            "; ".join(f"round {mark.round} {mark.kind}: {mark.reason}" for mark in marks),
        ]

    return csv_text(
        ["worker", "attacker", "first round", "last round", "weight", "left out"],
        (row(worker, column) for worker in range(len(shown.workers)) for column in range(len(shown.first))),
    )


def _shown(worst: WorstCases) -> list[Cell]:
    return [cell for row in worst.rows for cell in (row.clean, *row.cells.values()) if cell is not None]


def _columns(worst: WorstCases) -> tuple[str, ...]:
    clean = any(row.clean is not None for row in worst.rows)
    return (NONE, *worst.attacks) if clean else worst.attacks


def _of(row: Row, attack: str) -> Cell | None:
    return row.clean if attack == NONE else row.cells.get(attack)


def _names(worst: WorstCases, row: Row) -> list[str]:
    """The first cells of a row: the settings of its group, the rule, and what goes with it."""
    return [*row.group, row.rule, *(row.carried.get(path, "") for path in worst.carried)]


def _cells(worst: WorstCases, row: Row) -> list[str]:
    shown = [printable(text, TEXT) for text in _names(worst, row)]
    for attack in _columns(worst):
        cell = _of(row, attack)
        mark = "*" if worst.is_best(row, attack) else ""
        shown.append("" if cell is None else f"{_with_deviation(cell, worst.metric)}{mark}")
    if worst.attacks:
        mark = "*" if worst.is_best(row) else ""
        shown.append(f"{score_text(row.worst, worst.metric)}{mark}")
    return shown


def _with_deviation(cell: Cell, metric: str) -> str:
    deviation = f" ± {score_text(cell.std, metric)}" if cell.std is not None else ""
    lacking = f" ({len(cell.values)}/{cell.planned})" if cell.gaps else ""
    return f"{score_text(cell.mean, metric)}{deviation}{lacking}{' !' if cell.early else ''}"


def _latex_cell(cell: Cell | None, worst: WorstCases, row: Row, attack: str) -> str:
    if cell is None or cell.mean is None:
        return "--"
    deviation = f" \\pm {score_text(cell.std, worst.metric)}" if cell.std is not None else ""
    number = _latex_number(cell.mean, worst.metric, bold=worst.is_best(row, attack))
    return f"${number}{deviation}{_mark(gaps=bool(cell.gaps), early=bool(cell.early))}$"


def _latex_worst(worst: WorstCases, row: Row) -> str:
    if row.worst is None:
        return "--"
    number = _latex_number(row.worst, worst.metric, bold=worst.is_best(row))
    return f"${number}{_mark(gaps=not row.complete, early=False)}$"


def _latex_number(value: float, metric: str, *, bold: bool) -> str:
    if not math.isfinite(value):
        return r"\infty" if value > 0 else r"-\infty"
    text = score_text(value, metric)
    if "e" in text:
        digits, _, power = text.partition("e")
        text = f"{digits} \\times 10^{{{int(power)}}}"
    return f"\\mathbf{{{text}}}" if bold else text


def _mark(*, gaps: bool, early: bool) -> str:
    signs = (r"\dagger" if gaps else "") + (r"\ddagger" if early else "")
    return f"^{{{signs}}}" if signs else ""


def _direction(worst: WorstCases) -> str:
    return "minimum" if worst.better == "higher" else "maximum"


def _safe(value: Any) -> Any:
    """A value as a cell of CSV: text on one line, and never a formula."""
    if value is None or isinstance(value, bool | int):
        return "" if value is None else value
    if isinstance(value, float):
        return repr(value)
    text = printable(str(value), 2000)
    return f"'{text}" if len(text) > 1 and text.startswith(FORMULA) else text


def tables(study: Study, worst: WorstCases) -> Mapping[str, str]:
    """The files of a study's tables, by name."""
    return {
        "worst_cases.csv": worst_cases_csv(worst),
        "worst_cases.tex": latex(worst),
        "runs.csv": runs_csv(study, worst.at),
        "matched_length.csv": matched_csv(study.matched(worst.metric), study.by),
    }

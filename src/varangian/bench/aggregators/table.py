"""The report of the aggregator benchmark as a plain table: a row for each rule, columns for each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from varangian.bench.aggregators.report import Line, Report
from varangian.cli.views.terminal import align

COLUMNS = ("x mean", "cpu", "x floor")
GAP = "   "
LEGEND = (
    "x mean: wall time over that of rows.mean(0) just before and after. cpu: the same in processor time,\n"
    "of all threads. x floor: wall time over the reads that cannot be spared, at the bandwidth of the\n"
    "copy; a copy also writes, so reads alone can go below 1. Medians of the repeats. error: greatest\n"
    "relative difference to the float64 reference; of peers, to our rule."
)


@dataclass(frozen=True)
class Grid:
    """Cells as text; `groups` are headings above the headers of their columns."""

    groups: tuple[str, ...]
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grid(report: Report) -> Grid:
    groups, headers, mean, copy = [""], ["rule"], ["rows.mean(0)"], ["copy"]
    for size in report.sizes:
        groups += [f"{size.title}, f = {size.f}", "", ""]
        headers += COLUMNS
        mean += [f"{size.mean.wall_ms:.3g} ms", "", ""]
        copy += [f"{size.copy.wall_ms:.3g} ms", "", f"{size.copy.gigabytes_per_second:.3g} GB/s"]
    rows = ((*mean, "", ""), (*copy, "", ""), *_rows(report))
    return Grid((*groups, "", ""), (*headers, "error", ""), rows)


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    found = [{line.title: line for line in size.lines} for size in report.sizes]
    for title in dict.fromkeys(title for lines in found for title in lines):
        lines = [of_size.get(title) for of_size in found]
        cells = [text for line in lines for text in _cells(line)]
        here = [line for line in lines if line]
        errors = [line.error for line in here if line.error is not None]
        yield (title, *cells, f"{max(errors):.0e}" if errors else "-", _note(report, lines))


def _cells(line: Line | None) -> tuple[str, str, str]:
    if line is None:
        return "-", "-", "-"
    if line.timing is None:
        return ("FAILED" if line.status == "failed" else "no f"), "-", "-"
    floor = f"{line.x_floor:.2f}" if line.x_floor is not None else "-"
    return f"{line.timing.wall_x_mean:.2f}", f"{line.timing.cpu_x_mean:.2f}", floor


def _note(report: Report, lines: Sequence[Line | None]) -> str:
    """Remarks on a line: another convention, or an f of its own."""
    notes = dict.fromkeys(line.verdict for line in lines if line and line.verdict == "other convention")
    other_f = [
        f"f = {line.f} at {size.title}"
        for size, line in zip(report.sizes, lines, strict=True)
        if line and line.f not in (None, size.f)
    ]
    return "; ".join([*filter(None, notes), *other_f])


def plain(report: Report) -> str:
    table = grid(report)
    widths = [max(map(len, column)) for column in zip(table.headers, *table.rows, strict=True)]
    lines = align([table.headers, *table.rows], gap=GAP, left=(0, len(widths) - 1))
    return "\n".join([_above(table, widths), *lines, "", *remarks(report)])


def _above(table: Grid, widths: Sequence[int]) -> str:
    """The line above the headers, in which each group begins at its first column."""
    line, place = "", 0
    for text, width in zip(table.groups, widths, strict=True):
        if text:
            line = line.ljust(place) + text + " "
        place += width + len(GAP)
    return line.rstrip()


def remarks(report: Report) -> list[str]:
    """The legend, the machine, rules that were not timed and libraries that are absent."""
    machine = report.machine
    backends = ", ".join(dict.fromkeys(size.backend for size in report.sizes))
    where = f"{machine['cpu']}, threads: {machine['threads']}, cores: {machine['cores']}"
    load = f"load average {machine['load_at_start']} before and {machine['load_at_end']} after"
    impossible = [
        f"{line.title}, {size.title}: {line.reason}"
        for size in report.sizes
        for line in size.lines
        if line.status == "impossible" or (line.status == "failed" and line.library != "varangian")
    ]
    absent = [f"{library}: {said}" for library, said in report.peers.items()]
    return [
        LEGEND,
        f"backend {backends}; float32; {where}; torch {machine['torch']}; {load}",
        *impossible,
        *absent,
    ]

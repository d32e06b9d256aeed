"""The report of the aggregator benchmark as a rich table, for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from varangian.bench.aggregators.report import Report
from varangian.bench.aggregators.table import grid, remarks

WIDEST = 10_000
"""Columns of a terminal that no table needs."""


def show(report: Report) -> None:
    cells = grid(report)
    table = Table()
    for i, (group, header) in enumerate(zip(cells.groups, cells.headers, strict=True)):
        left = i in (0, len(cells.headers) - 1)
        table.add_column(Text(f"{group}\n{header}"), justify="left" if left else "right")
    for row in cells.rows:
        table.add_row(*(Text(cell, style="red" if cell == "FAILED" else "") for cell in row))
    console = Console(highlight=False)
    # Nothing is cut or broken to fit: a cell that is cut is a wrong number, and a remark is one sentence.
    needed = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
    console.width = max(console.width, needed)
    console.print(table)
    for line in remarks(report):
        console.print(Text(line), soft_wrap=True)

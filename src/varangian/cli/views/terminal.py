"""Text for a terminal: escaped, and aligned in columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from varangian.protos.text import escape as printable

__all__ = ["NOTE", "align", "printable"]

NOTE = 1000
"""Characters of a sentence of our own, which may have a path and a reason in it."""


def align(
    rows: Iterable[Sequence[str]], *, gap: str = "   ", left: Collection[int] | None = None
) -> Iterator[str]:
    """Plain lines with aligned columns, for pipes and logs, where a table of rich would draw boxes.

    Args:
        rows: of cells. A row that ends early may be wider than its column: it has a sentence.
        gap: between two columns.
        left: the columns that are aligned to the left; all by default.
    """
    rows = [*rows]
    columns = max(map(len, rows))
    widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
    for row in rows:
        here = range(columns) if left is None or len(row) < columns else left
        cells = (
            cell.ljust(width) if i in here else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        yield gap.join(cells).rstrip()

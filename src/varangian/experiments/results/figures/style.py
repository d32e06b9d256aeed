"""The style of figures for papers: sizes, fonts, and lines that can be told apart without colour."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from varangian.cli.views.figure import BLUE, GREEN, ORANGE, PINK, RED, SKY
from varangian.cli.views.terminal import printable
from varangian.files import write_atomically

COLUMN, DOUBLE = 3.35, 6.9
"""Widths of a column and of a page of two columns, in inches."""
DOTS_PER_INCH = 300
BLACK, WHITE, GREY = "#000000", "#ffffff", "#8c8c8c"
COLOURS = (BLUE, RED, GREEN, BLACK, PINK, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
"""The three have lengths without a common factor: 385 lines differ from one another in some of them."""
RAMP = "cividis"
"""A colour map whose brightness rises evenly, for eyes and printers that see no colour."""
SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for, in place of outlines
    "savefig.dpi": DOTS_PER_INCH,
}
NAME = 80
"""Most characters of the name of a file."""


@contextmanager
def paper() -> Generator[None]:
    """Draw and save figures in the style of a paper."""
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in another script
        yield


def line_style(i: int) -> dict[str, Any]:
    """The colour, dashes and marker of line i."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def shown(text: str) -> str:
    """Text of others as matplotlib prints it: no formula, no line ends, and never hidden from a legend."""
    safe = printable(text, NAME).replace("$", r"\$")
    return f" {safe}" if safe.startswith("_") else safe


def file_name(*parts: str) -> str:
    """A name for a file, from names that may have any characters."""
    words = [re.sub(r"[^A-Za-z0-9_.+=-]+", "_", part).strip("_.") for part in parts if part]
    return "-".join(word for word in words if word)[:NAME]


def write(figure: Figure, folder: Path, name: str, data: str) -> list[Path]:
    """Write a figure as PDF and PNG, and what it shows as CSV."""
    found: list[Path] = []
    # Without a date, the same runs make the same files.
    for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
        content = io.BytesIO()
        figure.savefig(content, format=ending, metadata=metadata)
        found.append(_written(folder / f"{name}.{ending}", content.getvalue()))
    return [*found, _written(folder / f"{name}.csv", data.encode())]


def write_text(folder: Path, name: str, text: str) -> Path:
    """Write a table."""
    return _written(folder / name, text.encode())


def _written(path: Path, content: bytes) -> Path:
    write_atomically(path, content)
    return path

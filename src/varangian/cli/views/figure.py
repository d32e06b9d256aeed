"""A figure of matplotlib as a file, and colours that people with any colour vision can tell apart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from varangian.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"


def save(figure: Figure, path: Path, kind: str = "png") -> None:
    """Write the figure as `kind`, as a whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DOTS_PER_INCH, format=kind)
    write_atomically(path, content.getvalue())

"""HTML from templates, in which every text is escaped, and data that a page can be asked for.

Names, reasons and errors come from workers and from files: all of it is shown as text, control characters
and escape sequences of terminals included.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from varangian.cli.views.terminal import printable

if TYPE_CHECKING:
    from jinja2 import Environment

    from varangian.experiments.results.study import Study

ASSETS = Path(__file__).parent / "assets"
LONGEST = 2000
"""Characters of a text that are shown."""
NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""
SHADES = 10
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take a cell for a formula by."""

Cell = str | float | int | None


def check_libraries() -> None:
    """See that the libraries of the report are installed, without the time that importing them takes.

    Raises:
        MissingLibraryError: one is not.
    """
    for module, name in (("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")):
        if find_spec(module) is None:
            raise MissingLibraryError(
                f"a report needs {name}, which is not installed: pip install 'varangian[report]'"
            )


def render(template: str, **values: Any) -> str:
    """The HTML of a template."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data": script_json, "shade": shade, "markup": markup}
    return environment


def _text(value: Any) -> Any:
    """What a template puts in: text without control characters; markup as it is."""
    return printable(value, LONGEST) if type(value) is str else value


def setting_of(study: Study, group: Sequence[str]) -> str:
    """`f = 2, partition.dirichlet.alpha = 0.1`."""
    return ", ".join(f"{path} = {value}" for path, value in zip(study.by, group, strict=True))


def markup(html: str) -> str:
    """Text that is HTML already."""
    from markupsafe import Markup

    return Markup(html)


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return markup(text.replace("<", r"\u003c"))


def shade(value: float | None, low: float, high: float) -> str:
    """The class of a cell of a heat map, from light (low) to dark (high)."""
    if value is None or not math.isfinite(value):
        return "empty"
    part = (value - low) / (high - low) if high > low else 0.5
    return f"h{min(SHADES - 1, max(0, int(SHADES * part)))}"


class MissingLibraryError(Exception):
    """A library of the extra `report` is not installed; the sentence says how to install it."""


@dataclass(frozen=True)
class Table:
    """Data of a figure, as CSV in a link: what readers download, and what the charts are drawn from."""

    id: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    numbers: tuple[str, ...] = ()
    """Columns of numbers; the others are text."""

    @property
    def link(self) -> str:
        return f"data:text/csv;charset=utf-8,{quote(self.csv, safe=' !$()*+,/:;=?@')}".replace(" ", "%20")

    @property
    def csv(self) -> str:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(self.columns)
        lines.writerows([_csv_cell(cell) for cell in row] for row in self.rows)
        return text.getvalue()


def _csv_cell(cell: Cell) -> str | int:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.6g}"
    if isinstance(cell, str):
        text = printable(cell, LONGEST)
        return f"'{text}" if text.startswith(FORMULA) else text
    return cell


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    html: str

    @property
    def version(self) -> str:
        """The same as long as the section is: a page that is followed replaces it when this changes."""
        return hashlib.blake2b(self.html.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Score:
    """How values of a score are shown."""

    metric: str
    percent: bool

    @classmethod
    def of(cls, metric: str, values: Iterable[float | None] = ()) -> Score:
        share = "accuracy" in metric or "success" in metric
        return cls(metric, share and all(v is None or not math.isfinite(v) or abs(v) <= 1 for v in values))

    @property
    def title(self) -> str:
        return TITLES.get(self.metric) or self.metric.replace("_", " ")

    @property
    def unit(self) -> str:
        return "in %" if self.percent else "as it is recorded"

    def text(self, value: float | None) -> str:
        if value is None:
            return NOTHING
        if not math.isfinite(value):
            return "diverged"
        if self.percent:
            return f"{100 * value:.1f}"
        return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


TITLES = {
    "accuracy": "accuracy on held-out data",
    "loss": "loss on held-out data",
    "train_loss": "loss on training data",
    "ema_accuracy": "accuracy of the averaged model",
    "ema_loss": "loss of the averaged model",
}

"""HTML from templates, in which every text is escaped, and data that a page can be asked for.

Names, reasons and errors come from workers and from files: all of it is shown as text, control characters
and escape sequences of terminals included.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from varangian.cli.views.terminal import printable
from varangian.experiments.results.tables import csv_text, is_share, score_text

if TYPE_CHECKING:
    from jinja2 import Environment

    from varangian.experiments.results.study import Study

ASSETS = Path(__file__).parent / "assets"
LONGEST = 2000
"""Characters of a text that are shown."""
NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""
SHADES = 10
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
    added: dict[str, Any] = {"data": script_json, "shade": shade, "markup": markup, "breakable": breakable}
    environment.filters.update(added)
    return environment


def _text(value: Any) -> Any:
    """A value as a template puts it in: text without control characters; markup as it is."""
    return printable(value, LONGEST) if type(value) is str else value


def setting_of(study: Study, group: Sequence[str]) -> str:
    """`f = 2, partition.dirichlet.alpha = 0.1`."""
    return ", ".join(f"{path} = {value}" for path, value in zip(study.by, group, strict=True))


def markup(html: str) -> str:
    """Text that is HTML already."""
    from markupsafe import Markup

    return Markup(html)


def breakable(text: str) -> str:
    """A name of a rule or an attack as HTML that may go on in the next line before its fields."""
    from markupsafe import escape

    return markup(str(escape(printable(text, LONGEST))).replace("(", "<wbr>("))


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
        return csv_text(self.columns, ([_rounded(cell) for cell in row] for row in self.rows))


def _rounded(cell: Cell) -> Cell:
    """Six digits of a number, which are more than a figure shows; nothing for one that is not finite."""
    if not isinstance(cell, float):
        return cell
    return float(f"{cell:.6g}") if math.isfinite(cell) else None


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

    @property
    def percent(self) -> bool:
        return is_share(self.metric)

    @property
    def title(self) -> str:
        return TITLES.get(self.metric) or self.metric.replace("_", " ")

    @property
    def heading(self) -> str:
        """The title as the beginning of a sentence."""
        return f"{self.title[0].upper()}{self.title[1:]}"

    @property
    def unit(self) -> str:
        return "in %" if self.percent else "as it is recorded"

    def text(self, value: float | None) -> str:
        if value is None:
            return NOTHING
        return score_text(value, self.metric) if math.isfinite(value) else "diverged"


TITLES = {
    "accuracy": "accuracy on held-out data",
    "loss": "loss on held-out data",
    "train_loss": "loss on training data",
    "ema_accuracy": "accuracy of the averaged model",
    "ema_loss": "loss of the averaged model",
}

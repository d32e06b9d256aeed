"""Graphs from files: adjacency matrices and lists of links."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from varangian.aggregators.graphs.base import GRAPHS, GraphError, Links
from varangian.aggregators.graphs.links import Static
from varangian.files import user_path

BYTES = 4 * 2**20
WORKERS = 1024
"""The largest graph that is read: a matrix of this size takes half of `BYTES`."""


class Link(NamedTuple):
    sender: int
    receiver: int
    where: str
    """Its place in the file: `line 7`."""


@GRAPHS.register("file")
@dataclass(frozen=True)
class AdjacencyFile(Static):
    """Graph from a file, with Metropolis weights when links go both ways, otherwise plain averages.

    Workers have numbers from 0; a link from a worker to itself is ignored, as each counts itself anyway.
    """

    path: str
    """A matrix as .csv or as .json (a list of rows), in which a 1 in row i and column j says that i sends
    to j; any other file is a list of links, one `i j` in a line, with comments after #."""
    directed: bool = False
    """Whether a link goes one way only. If not, a list names it once, and a matrix has to be symmetric."""
    _links: tuple[Link, ...] = field(init=False, repr=False, compare=False)
    _n: int | None = field(init=False, repr=False, compare=False)
    """The size of a matrix; None for a list of links."""

    def __post_init__(self) -> None:
        n, links = read(self.path)
        if not self.directed and n is not None:
            self._check_symmetric(links)
        object.__setattr__(self, "_links", links)
        object.__setattr__(self, "_n", n)

    def links(self, n: int) -> Links:
        if self._n not in (None, n):
            raise GraphError(f"{self.path} describes {self._n} workers. Found {n} in this run.")
        links = np.zeros((n, n), dtype=bool)
        for link in self._links:
            if max(link.sender, link.receiver) >= n:
                raise GraphError(
                    f"{self.path}, {link.where}: there are {n} workers, with numbers from 0. "
                    f"Found {max(link.sender, link.receiver)}."
                )
            links[link.receiver, link.sender] = True
            links[link.sender, link.receiver] |= not self.directed
        np.fill_diagonal(links, False)
        return links

    def _check_symmetric(self, links: Sequence[Link]) -> None:
        known = {(link.sender, link.receiver) for link in links}
        for i, j, where in links:
            if (j, i) not in known:
                raise GraphError(
                    f"{self.path}, {where}: {i} sends to {j}, but not {j} to {i}. "
                    "Correct the matrix, or say `directed: true`."
                )


def read(path: str) -> tuple[int | None, tuple[Link, ...]]:
    """The number of workers, where the file says it, and the links.

    Raises:
        GraphError: the file cannot be read, is too large, or holds something else; with the line.
    """
    text = _text(path)
    try:
        match Path(path).suffix.lower():
            case ".csv":
                return _matrix(_csv_rows(text), "line")
            case ".json":
                return _matrix(enumerate(_json_rows(text), 1), "row")
            case _:
                return None, tuple(_listed(text.splitlines()))
    except GraphError as error:
        raise GraphError(f"{path}, {error}") from None


def _text(path: str) -> str:
    try:
        with user_path(path).open("rb") as file:
            data = file.read(BYTES + 1)
        if len(data) > BYTES:
            raise GraphError(f"{path} should hold at most {BYTES} bytes.")
        return data.decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise GraphError(f"{path} cannot be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise GraphError(f"{path} should be UTF-8 text.") from error


def _listed(lines: Iterable[str]) -> Iterator[Link]:
    for number, line in enumerate(lines, 1):
        parts = line.partition("#")[0].replace(",", " ").split()
        if not parts:
            continue
        if len(parts) != 2 or not all(map(_is_worker, parts)):
            raise GraphError(
                f"line {number}: should be two numbers of workers, each below {WORKERS}. "
                f"Found {_shown(line.strip())}."
            )
        yield Link(int(parts[0]), int(parts[1]), f"line {number}")


def _is_worker(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(WORKERS)) and int(text) < WORKERS


def _csv_rows(text: str) -> Iterator[tuple[int, list[object]]]:
    """The rows of a CSV file with their line numbers; cells 0 and 1 as numbers, others as they stand."""
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [{"0": 0, "1": 1}.get(cell.strip(), cell) for cell in cells]
    except csv.Error as error:
        raise GraphError(f"line {reader.line_num}: is not valid CSV: {error}.") from error


def _json_rows(text: str) -> list[object]:
    try:
        rows: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise GraphError(f"line {error.lineno}: is not valid JSON: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise GraphError(f"line 1: is not JSON that can be read: {error}.") from error
    if not isinstance(rows, list):
        raise GraphError(f"line 1: should be a list of rows. Found {_shown(rows)}.")
    return cast("list[object]", rows)


def _matrix(rows: Iterable[tuple[int, object]], unit: str) -> tuple[int, tuple[Link, ...]]:
    links: list[Link] = []
    count, width = 0, 0
    for place, row in rows:
        where = f"{unit} {place}"
        cells = _cells(row, where)
        width = width or len(cells)
        if len(cells) != width or not 0 < width <= WORKERS or count == width:
            raise GraphError(
                f"{where}: should be one of as many rows as columns, at most {WORKERS}. "
                f"Found {len(cells)} columns in row {count + 1}, and {width} in the first."
            )
        links += (Link(count, column, where) for column, cell in enumerate(cells) if cell)
        count += 1
    if count != width or count == 0:
        raise GraphError(f"at the end: there should be as many rows as columns. Found {count} and {width}.")
    return count, tuple(links)


def _cells(row: object, where: str) -> list[int]:
    if not isinstance(row, list):
        raise GraphError(f"{where}: should be a list of 0 and 1. Found {_shown(row)}.")
    for column, cell in enumerate(cast("list[object]", row), 1):
        if type(cell) is not int or cell not in (0, 1):
            raise GraphError(f"{where}: column {column} should be 0 or 1. Found {_shown(cell)}.")
    return cast("list[int]", row)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."

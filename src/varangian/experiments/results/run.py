"""One run as its folder tells it; each file is read when it is first asked for.

Text in it that came from workers (reasons, own names) is data: it is kept as it was written, and whoever
shows it escapes it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from varangian.files import settings_file

Column: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Rounds that are done, from 1, and the value after each of them."""
State: TypeAlias = Literal["finished", "failed", "interrupted", "error", "unfinished", "missing"]
"""As the outcome of a run; error: it ended in an exception; unfinished: it goes on, or was killed; missing:
planned, and not begun."""

RUNNING = ".running"
"""Ending of the name of a folder whose run a sweep has in hand."""
ROUNDS, METRICS, CONFIG, MANIFEST = "rounds.jsonl", "metrics.csv", "config.yaml", "manifest.json"
RESULT, ERROR = "result.json", "error.json"
MARKS = (ROUNDS, RESULT, ERROR, MANIFEST)
"""A folder with one of these files is that of a run."""
COLUMNS = ("lr", "train_loss", "loss", "accuracy", "ema_loss", "ema_accuracy", "update_norm")
"""Numbers of a record that are columns of metrics.csv, beside the metrics of the run."""
TAIL = 1 << 16
"""Bytes from the end of a file that are read first when its last line is wanted."""
RESUMED = b'"resumed": {'
"""In the first record of a run that goes on."""
DAMAGED = "The file is damaged: remove the folder of the run and make it again, or leave it out."


class ResultsError(Exception):
    """Results that cannot be read; the sentence names the path, what was found, and what to do."""


@dataclass(frozen=True)
class Run:
    """One run: its configuration, how it ended, and its numbers over the rounds.

    What it returns is shared and must not be changed.
    """

    folder: Path

    @property
    def id(self) -> str:
        """The name of its folder: in a sweep, the identity of the run."""
        return self.folder.name.removesuffix(RUNNING)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Every setting, resolved.

        Raises:
            ResultsError: there is no such file, or it is no configuration.
        """
        return _read_config(settings_file(self._file(CONFIG).parent))

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Versions, seed, command, time; empty where there is none.

        Raises:
            ResultsError: it is not JSON, as are the next two.
        """
        return _read_json(self._file(MANIFEST)) or {}

    @cached_property
    def result(self) -> Mapping[str, Any] | None:
        """The end of the run; None of a run that has not come to it."""
        return _read_json(self._file(RESULT))

    @cached_property
    def error(self) -> Mapping[str, Any] | None:
        """The exception that ended the run, as `error` and `kind`; None where there was none."""
        return _read_json(self._file(ERROR))

    @property
    def state(self) -> State:
        if self.result is not None:
            outcome = self.result.get("outcome")
            return outcome if outcome in ("failed", "interrupted") else "finished"
        return "unfinished" if self.error is None else "error"

    @property
    def running(self) -> bool:
        """Whether the run has not ended: it goes on, or it was killed."""
        return self.state == "unfinished"

    @property
    def reason(self) -> str:
        """The reason why a run has no result that counts, as a sentence; empty where it has."""
        if self.state == "finished":
            return ""
        if self.result is not None:
            return str(self.result.get("reason") or self.state)
        if self.error is not None:
            return str(self.error.get("error") or self.error.get("kind") or "it ended in an exception")
        return "it has not ended"

    def records(self) -> Iterator[dict[str, Any]]:
        """The record of each round, one by one. The last line of a run that has not ended may be torn.

        Of rounds that were done again by a run that went on after a crash, it is the last.

        Raises:
            ResultsError: the file cannot be read; with the line.
        """
        path, before = self._file(ROUNDS), -1
        try:
            resumes = _resumes(path)
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if resumes and resumes[0][0] == number:
                        before = min(before, resumes.pop(0)[1] - 1)
                    if not line.endswith(b"\n"):
                        if self.result is None:
                            return
                        raise ResultsError(f"{path}, line {number}, ends half way. {DAMAGED}")
                    record = _record(line)
                    if record is None or record["round"] <= before:
                        what = "should be the record of a round" if record is None else "is out of order"
                        raise ResultsError(f"{path}, line {number}, {what}. {DAMAGED}")
                    before = record["round"]
                    if all(before < round for _, round in resumes):
                        yield record
        except OSError as error:
            raise ResultsError(f"{self.folder} should be the folder of a run. {_why(error)}") from error

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """The record of each round. It is large: of many runs, ask for columns."""
        return list(self.records())

    def columns(self, name: str) -> Column:
        """A number over the rounds, those rounds left out in which it has no value.

        Metrics by their names, `loss`, `train_loss`, `lr`, `update_norm`, `time` and `seconds`; and any
        other number of a record, as `effective`, for which all records are read.

        Raises:
            ResultsError: a file of the run is damaged.
        """
        found = self._table.get(name)
        return self._column_of_records(name) if found is None else found

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores that the run has on held-out data and on training data."""
        others = ("round", "time", "lr", "update_norm", "seconds")
        return tuple(
            name for name, (rounds, _) in self._table.items() if len(rounds) and name not in others
        )

    def check(self) -> None:
        """See that the records of a run that has ended are complete, without reading all of them.

        Raises:
            ResultsError: its last round is missing, or cut.
        """
        if self.result is None:
            return
        path, rounds = self._file(ROUNDS), self.result.get("rounds")
        try:
            last = _last_line(path)
        except OSError as error:
            raise ResultsError(f"{self.folder} should be the folder of a run. {_why(error)}") from error
        record = _record(last) if last.endswith(b"\n") else None
        if last and record is None:
            raise ResultsError(f"{path}, line {_count_lines(path)}, ends half way. {DAMAGED}")
        done = 0 if record is None else record["round"] + 1
        if isinstance(rounds, int) and done != rounds:
            raise ResultsError(
                f"{path} should end with round {rounds - 1}, and its line {_count_lines(path)} is of round "
                f"{done - 1}. {DAMAGED}"
            )

    def _file(self, name: str) -> Path:
        """The path of a file. A sweep that ends the run meanwhile renames its folder."""
        renamed = self.folder.name != self.id and not self.folder.exists()
        return (self.folder.with_name(self.id) if renamed else self.folder) / name

    @cached_property
    def _table(self) -> dict[str, Column]:
        """The columns of metrics.csv; those of the records where there is no such file."""
        path = self._file(METRICS)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                text = file.read()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return self._table_of_records()
            raise ResultsError(f"{self.folder} should be the folder of a run. {_why(error)}") from error
        except UnicodeDecodeError as error:
            raise ResultsError(f"{path} should be UTF-8 text. {DAMAGED}") from error
        if self.result is None:
            text = text[: text.rfind("\n") + 1]
        return _read_table(path, text)

    def _table_of_records(self) -> dict[str, Column]:
        found: dict[str, tuple[list[int], list[float]]] = {}
        for record in self.records():
            own = record.get("metrics")
            numbers = {name: record.get(name) for name in COLUMNS}
            for name, value in (numbers | (own if isinstance(own, dict) else {})).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    rounds, values = found.setdefault(name, ([], []))
                    rounds.append(record["round"] + 1)
                    values.append(value)
        return {name: _column(*points) for name, points in found.items()}

    def _column_of_records(self, name: str) -> Column:
        rounds: list[int] = []
        values: list[float] = []
        for record in self.records():
            value = record.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                rounds.append(record["round"] + 1)
                values.append(value)
        return _column(rounds, values)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in MARKS)


def _column(rounds: list[int], values: list[float]) -> Column:
    return np.asarray(rounds, dtype=np.int64), np.asarray(values, dtype=np.float64)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a round in a line; None if it is something else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get("round"), int)
    return record if known else None


def _read_table(path: Path, text: str) -> dict[str, Column]:
    lines = text.splitlines()
    names = next(csv.reader(lines[:1]), [])
    if not names:
        return {}
    if names[0] != "round" or len(set(names)) != len(names):
        raise ResultsError(f"{path}, line 1, should name columns, the first of them round. {DAMAGED}")
    rows = [line.split(",") for line in lines[1:]]  # numbers alone: nothing is quoted
    try:
        columns = list(zip(*rows, strict=True))
        if rows and len(columns) != len(names):
            raise ValueError
        done = [int(cell) + 1 for cell in columns[0]] if rows else []
        return {name: _filled(done, columns[i] if rows else ()) for i, name in enumerate(names)}
    except ValueError as error:
        number = next(i for i, row in enumerate(rows, start=2) if not _are_numbers(row, len(names)))
        what = f"should have a number or nothing in each of {len(names)} columns"
        raise ResultsError(f"{path}, line {number}, {what}. {DAMAGED}") from error


def _filled(done: list[int], cells: Sequence[str]) -> Column:
    """The rounds in which a column has a value, and the values."""
    if all(cells):
        return _column(done, list(map(float, cells)))
    filled = [(at, float(cell)) for at, cell in zip(done, cells, strict=True) if cell]
    return _column([at for at, _ in filled], [value for _, value in filled])


def _are_numbers(row: Sequence[str], columns: int) -> bool:
    """Whether a line has its round, and a number or nothing in each of the other columns."""
    try:
        int(row[0])
        for cell in row[1:]:
            float(cell or 0)
    except ValueError:
        return False
    return len(row) == columns


def _read_json(path: Path) -> Mapping[str, Any] | None:
    """An object of JSON; None where there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultsError(f"{path.parent} should be the folder of a run. {_why(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} should be JSON: {error}. {DAMAGED}") from error
    if not isinstance(value, dict):
        raise ResultsError(f"{path} should be an object of JSON. {DAMAGED}")
    return value


def _read_config(path: Path) -> Mapping[str, Any]:
    """The settings in a file, a section at a time: runs of one study have nearly all of them in common."""
    from varangian.config.yaml_text import read
    from varangian.registry import ConfigError

    try:
        parts = re.split(r"^(?=\w)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found: dict[str, Any] = {}
        if not parts[0]:
            for part in parts[1:]:
                found |= _section(part)
        whole = len(found) == len(parts) - 1 and found
        return found if whole else read(path)
    except ConfigError:
        pass  # a section that refers to another, or is broken: the whole file says it with the line
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path.parent} should be the folder of a run. {_why(error)}") from error
    try:
        return read(path)
    except ConfigError as error:
        raise ResultsError(f"{error}. {DAMAGED}") from error


@lru_cache(maxsize=4096)
def _section(text: str) -> Mapping[str, Any]:
    from varangian.config.yaml_text import parse

    value = parse(text, CONFIG)
    return value if isinstance(value, dict) else {}


def _last_line(path: Path) -> bytes:
    """The last line of a file, or what there is of it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = min(TAIL, size)
        while True:
            file.seek(size - length)
            tail = file.read(length)
            start = tail.rfind(b"\n", 0, max(len(tail) - 1, 0))
            if start >= 0 or length == size:
                return tail[start + 1 :]
            length = min(4 * length, size)


def _resumes(path: Path) -> list[tuple[int, int]]:
    """The lines with which a run went on, from 1, and the rounds from which lines before count no more."""
    found: list[tuple[int, int]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if RESUMED in line and (record := _record(line)) is not None and record.get("resumed"):
                found.append((number, record["round"]))
    return found


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{CONFIG} should be UTF-8 text."
    return f"{Path(error.filename or '').name}: {error.strerror or error}."


def finite(value: Any) -> float | None:
    """A number; None for anything else, as for what was not finite and became null."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None

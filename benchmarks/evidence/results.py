"""Results files of tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.catalogue import Table


def stored(tables: Sequence[Table]) -> Iterator[tuple[Table, dict[str, Any]]]:
    """The results that are there."""
    for table in tables:
        if table.results.is_file():
            yield table, json.loads(table.results.read_text())


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a results file: one line for each rule, so that two versions can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_lines(content) + "\n")


def _lines(value: Any, depth: int = 0) -> str:
    """JSON in which the lowest two levels of a nesting stand on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if (
        not isinstance(value, dict | list)
        or not value
        or (depth and (len(flat) <= 100 or "aggregator" in value))
    ):
        return flat
    space, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        inner = [f"{json.dumps(key)}: {_lines(one, depth + 1)}" for key, one in value.items()]
        return "{" + space + f",{space}".join(inner) + end + "}"
    return "[" + space + f",{space}".join(_lines(one, depth + 1) for one in value) + end + "]"

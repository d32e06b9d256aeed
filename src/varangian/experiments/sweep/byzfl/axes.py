"""Axes: what varies between the points of a grid, and the parts of a grid file that say it.

An axis is a list of settings by path, one mapping for each value. What it sets to one value throughout
belongs to the base of a grid, an axis of one path to its `grid`, any other to its `cases`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

Axis: TypeAlias = list[dict[str, Any]]


def without_repetitions(values: Sequence[Any]) -> list[Any]:
    """The values in their order, each once."""
    kept = list[Any]()
    for value in values:
        if not any(value == other and type(value) is type(other) for other in kept):
            kept.append(value)
    return kept


def each(path: str, values: Sequence[Any]) -> Axis:
    """The axis of one setting."""
    return [{path: value} for value in without_repetitions(values)]


def assemble(axes: Sequence[Axis]) -> tuple[dict[str, Any], dict[str, list[Any]], list[dict[str, Any]]]:
    """The base, the grid and the cases, by path."""
    base, grid, coupled = dict[str, Any](), dict[str, list[Any]](), list[Axis]()
    for repeated in axes:
        axis = without_repetitions(repeated)
        common = [
            path
            for path in (axis[0] if axis else ())
            if all(path in settings and settings[path] == axis[0][path] for settings in axis)
        ]
        base |= {path: axis[0][path] for path in common}
        rest = [{path: settings[path] for path in settings if path not in common} for settings in axis]
        paths = {path for settings in rest for path in settings}
        if len(paths) == 1 and all(rest):
            (path,) = paths
            grid[path] = [settings[path] for settings in rest]
        elif paths:
            coupled.append(rest)
    points = [{path: v for part in parts for path, v in part.items()} for parts in product(*coupled)]
    return base, grid, points if coupled else []


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by path as a tree."""
    tree = dict[str, Any]()
    for path, value in settings.items():
        *sections, last = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree

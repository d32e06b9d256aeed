"""The grid that does what a configuration of ByzFL's benchmark does, with notes about what is different."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.config.yaml_text import dump
from varangian.experiments.sweep.byzfl.axes import assemble, nested
from varangian.experiments.sweep.byzfl.experiment import experiment_axes
from varangian.experiments.sweep.byzfl.reading import COUNT, FROM_ZERO, SHARE, Document, read_json
from varangian.experiments.sweep.byzfl.workers import attack_axes, training_axes
from varangian.files import user_path
from varangian.registry import ConfigError

TUNED = ("optimizer.lr", "worker.momentum", "optimizer.weight_decay")
"""Settings that ByzFL chooses by the worst accuracy on validation data."""


@dataclass(frozen=True)
class Translation:
    """A grid in place of a configuration of ByzFL."""

    grid: Mapping[str, Any]
    """As in a grid file."""
    notes: tuple[str, ...]
    """Sentences about what has no counterpart, or another convention, and what was taken in its place."""

    def as_yaml(self) -> str:
        """A grid file, with the notes as comments."""
        lines = [line for note in self.notes for line in textwrap.wrap(note, 97)]
        return "".join(f"# {line}\n" for line in lines) + dump(self.grid)


def read_byzfl(path: str | Path) -> Translation:
    """The translation of a file.

    Raises:
        ConfigError: not JSON, no configuration of ByzFL, or names and values that are unknown: all at once.
    """
    file = user_path(path)
    return translate(read_json(file), name=file.stem)


def translate(config: Mapping[str, Any], *, name: str = "config") -> Translation:
    """The translation of the content of a file.

    Args:
        config: as `json` reads it.
        name: of the grid.

    Raises:
        ConfigError: with every problem found.
    """
    document = Document(config)
    if document.problems and document.problems[0].path == "":
        raise ConfigError(document.problems)
    axes = [*experiment_axes(document), *training_axes(document), *attack_axes(document)]
    seeds = _seeds(document)
    base, grid, cases = assemble(axes)
    parts: dict[str, Any] = {
        "name": name,
        "base": nested(base),
        "grid": grid,
        "cases": cases,
        "seeds": seeds,
    }
    parts["tune"] = _tune(document, grid)
    if document.problems:
        raise ConfigError(document.problems)
    whole = {key: part for key, part in parts.items() if part}
    return Translation(json.loads(json.dumps(whole)), tuple(document.notes))  # no part is in two places


def _seeds(document: Document) -> list[int]:
    here = "benchmark_config"
    first = document.one(f"{here}.training_seed", FROM_ZERO, 0)
    document.one(f"{here}.data_distribution_seed", FROM_ZERO, 0)
    many = document.one(f"{here}.nb_training_seeds", COUNT, 1)
    splits = document.one(f"{here}.nb_data_distribution_seeds", COUNT, 1)
    again = f"; {splits} times {many} seeds are taken in a row" if splits > 1 else ""
    document.note(
        "Seeds: a seed draws the partition, the first parameters and the batches, where in ByzFL "
        f"data_distribution_seed draws the first two{again}."
    )
    return [first + number for number in range(many * splits)]


def _tune(document: Document, grid: Mapping[str, Sequence[Any]]) -> str | None:
    """The setting that is chosen on validation data, as ByzFL does where there is some."""
    paths = [path for path in TUNED if path in grid]
    if not paths or document.one("benchmark_config.size_train_set", SHARE, 0.8) == 1:
        return None
    if len(paths) > 1:
        document.note(
            f"{paths[0]} is chosen by its worst case on validation data, with {' and '.join(paths[1:])} "
            "beside it, where ByzFL chooses all of them."
        )
    return paths[0]

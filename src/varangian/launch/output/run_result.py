"""The result of a run: its scores, and what the run folder holds of it."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varangian.files import settings_file, user_path
from varangian.launch.result import Outcome, RunError
from varangian.registry import suggestion

if TYPE_CHECKING:
    # The programs that carry runs out need neither until somebody asks.
    from torch import Tensor, nn

SCORES = ("loss", "accuracy", "ema_loss", "ema_accuracy", "train_loss")
"""Fields of a record that hold a score; other metrics stand together in `metrics`."""
SHOWN = 6
"""Most scores in a line."""
STEPS = ("lr", "update_norm")
"""Fields of a record about the step of an evaluated round."""


@dataclass(frozen=True, repr=False)
class RunResult:
    """The end of a run, however it came; its records and its model are read from the run folder when asked.

    In a notebook it is shown as a table.
    """

    accuracy: float | None
    """Of the final parameters on held-out data, from 0 to 1; None where samples have no classes."""
    loss: float | None
    digest: str
    """blake2b-128 of the final parameters, in hexadecimal."""
    rounds: int
    """The number of rounds that were closed, with an update or without."""
    seconds: float
    """From the moment that the server was ready."""
    reason: str
    """The reason why the run ended, as a sentence."""
    outcome: Outcome
    folder: Path | None = None
    ema_accuracy: float | None = None
    """Of the average of the model; None in a run without one."""
    ema_loss: float | None = None
    metrics: dict[str, float] | None = None
    """Other metrics of the final parameters, by name."""
    signal: int | None = None
    """The number of the signal that stopped the run, if one did."""
    train_loss: float | None = None
    """On a fixed sample of the training data that the server has."""
    code_error: str | None = None
    """The first error of a rule, mixing or attack of the user, and in how many rounds there was one: the
    scores do not count then."""
    refused: dict[str, int] | None = None
    """The number of calls and connections that the server refused, by code; None if it refused none."""

    def plain(self) -> dict[str, Any]:
        """The values as JSON takes them; without `refused` where that is None."""
        folder = None if self.folder is None else str(self.folder)
        scores = {name: _finite(getattr(self, name)) for name in SCORES}
        own = self.metrics
        metrics = None if own is None else {name: _finite(value) for name, value in own.items()}
        values = dataclasses.asdict(self) | {"folder": folder, "metrics": metrics} | scores
        if self.refused is None:
            del values["refused"]
        return values

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> RunResult:
        """The result of a run that is over, from its folder.

        Raises:
            RunError: there is none.
        """
        path = user_path(folder)
        values = _read_json(path / "result.json", "It has not ended yet, perhaps.")
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        given["folder"] = path
        return cls(**given)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every setting of the run, as `varangian check` prints them."""
        from varangian.config.yaml_text import read

        return read(settings_file(self._folder))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The record of each round, in order; a `RoundRecord` has the names.

        Of a round that was done again it is the last.

        Raises:
            RunError: they cannot be read.
        """
        path = self._folder / "rounds.jsonl"
        found: list[dict[str, Any]] = []
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                if record.get("resumed") is not None:
                    found = [earlier for earlier in found if earlier["round"] < record["round"]]
                found.append(record)
            return found
        except (OSError, ValueError) as error:
            raise RunError(f"{path} should have a record in each line. Reading it says: {error}") from error

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """The scores after each evaluated round: lists of one length by name, with `round` first.

        Scores that this run has not are left out; a value is None where it was not finite.
        """
        rounds = [
            record for record in self.history if record.get("train_loss") is not None or _scored(record)
        ]
        metrics = dict.fromkeys(name for record in rounds for name in record.get("metrics") or {})
        plain = (
            "round",
            *(name for name in (*SCORES, *STEPS) if any(r.get(name) is not None for r in rounds)),
        )
        return {name: [record.get(name) for record in rounds] for name in plain} | {
            name: [(record.get("metrics") or {}).get(name) for record in rounds] for name in metrics
        }

    def column(self, name: str) -> list[Any]:
        """One of the columns.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self.columns:
            raise KeyError(f"There is no column {name!r}. {suggestion(name, self.columns)}")
        return self.columns[name]

    @cached_property
    def parameters(self) -> Tensor:
        """The final parameters (d,), float32 on the CPU: those that `digest` is of.

        Raises:
            RunError: they were not saved, or cannot be read.
        """
        from varangian.launch.output.saved_model import load_parameters

        return load_parameters(self._folder)

    def model(self, *, ema: bool = False) -> nn.Module:
        """The trained model, built anew, in evaluation mode; `ema` is the average of the model.

        Raises:
            RunError: it was not saved, or does not fit the model that the configuration names.
        """
        from varangian.launch.output.saved_model import load

        module: nn.Module = load(self._folder, ema=ema)
        return module

    @property
    def _folder(self) -> Path:
        if self.folder is None:
            raise RunError("This run has no folder to read from.")
        return self.folder

    def __repr__(self) -> str:
        shown = [f"{name} {text}" for name, text in self._scores()]
        scores = ", ".join(shown if len(shown) <= SHOWN else [*shown[:SHOWN], "..."])
        after = f"{self.outcome} after {self.rounds} rounds"
        return f"RunResult({after}{f': {scores}' if scores else ''}, folder {str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        facts = {
            "outcome": f"{self.outcome}: {self.reason}",
            **dict(self._scores()),
            "rounds": self.rounds,
            "seconds": f"{self.seconds:.1f}",
            "digest": self.digest,
            "folder": self.folder,
        }
        rows = (
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table>{''.join(rows)}</table>"

    def _scores(self) -> list[tuple[str, str]]:
        """The scores that this run has, as text."""
        named = {name: getattr(self, name) for name in SCORES} | (self.metrics or {})
        return [(name, f"{value:.4g}") for name, value in named.items() if value is not None]


def _scored(record: dict[str, Any]) -> bool:
    """Whether held-out data was looked at after a round."""
    return any(record.get(name) is not None for name in ("loss", "accuracy", "metrics"))


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"{path.parent} should be the folder of a run with {path.name}. {hint}")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise RunError(f"{path} should be JSON. Reading it says: {error}") from error


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

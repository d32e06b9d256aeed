"""The page of a run from its folder: of one that is over, or goes on, wherever its server is."""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from varangian.files import settings_file
from varangian.launch.monitoring.facts import (
    byzantine_of,
    facts_of,
    name_of,
    names_of,
    short_date,
    title_of,
)
from varangian.launch.result import RunError
from varangian.protos.text import escape
from varangian.server.monitoring.history import History
from varangian.server.monitoring.overview import Overview, curves_of, rounded, views

ROUNDS, RESULT, MANIFEST, METRICS, LOCK = (
    *("rounds.jsonl", "result.json", "manifest.json"),
    *("metrics.csv", "lock"),
)
TAIL = 1 << 14
"""Bytes at the end of a file in which its newest lines are looked for."""
LATELY = 20
"""Rows of metrics.csv over which the rate of rounds is taken."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class FolderView:
    """A run as its folder tells it; looks again for what was appended.

    Args:
        folder: of the run.

    Raises:
        RunError: it is none.
    """

    folder: Path
    _history: History = field(default_factory=History)
    _read: int = 0
    """Bytes of the records that were read."""

    def __post_init__(self) -> None:
        path = settings_file(self.folder)
        try:
            # Not through `varangian.config`, which would import torch to check what was checked before.
            found = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its settings cannot be read"
            raise RunError(f"{self.folder} should be the folder of a run. {path.name}: {reason}") from None
        if not isinstance(found, dict):
            raise RunError(f"{self.folder} should be the folder of a run. {path.name} has no settings")
        self._settings: dict[str, Any] = found

    def history(self) -> History:
        """What the records say by now.

        Raises:
            RunError: they cannot be read.
        """
        try:
            for record in self._records():
                with suppress(TypeError, ValueError, AttributeError):  # a line that no server wrote
                    self._history.add(record)
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"the records of {self.folder} cannot be read: {reason}") from None
        return self._history

    def overview(self) -> Overview:
        """The run at this moment.

        Raises:
            RunError: its records cannot be read.
        """
        history, settings = self.history(), self._settings
        result, manifest = _json(self.folder / RESULT), _json(self.folder / MANIFEST)
        elapsed, rate = self._times()
        state, sentence = self._state(result)
        names = history.members or names_of(settings)
        attackers = byzantine_of(settings)
        known: dict[str, dict[str, Any]] = {name: {"byzantine": True} for name in attackers}
        scores = dict(history.latest)
        for name in ("loss", "accuracy", "train_loss", "ema_loss", "ema_accuracy"):
            if isinstance(value := result.get(name), int | float) and math.isfinite(value):
                scores[name] = float(value)
        return Overview(
            run=escape(self.folder.absolute().name, 200),
            title=title_of(settings),
            live=False,
            state=state,
            sentence=sentence,
            # Lines behind a checkpoint count no more, which the next line alone would tell.
            round=int(result.get("rounds", history.last + 1)),
            rounds=int(settings.get("rounds") or 0),
            workers_total=len(names),
            f=settings.get("f"),
            elapsed=elapsed,
            rate=rate if state == "running" else None,
            scores={name: rounded(value) for name, value in scores.items()},
            curves=curves_of(history),
            window=[one.round for one in history.window],
            skipped=[one.round for one in history.window if one.skipped],
            seconds={str(name): rounded(value) for name, value in history.seconds.items()},
            workers=views(names, history, known),
            refusals=dict(result.get("refused") or {}),
            warnings=[escape(str(result["code_error"]), 500)] if result.get("code_error") else [],
            facts=facts_of(settings) | self._made(result, manifest),
            started=short_date(str(manifest.get("started") or "")),
        )

    def _made(self, result: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, str]:
        """Facts of what has been written."""
        found = {"backend": name_of(manifest.get("backend") or self._settings.get("backend"))}
        if result.get("digest"):
            found["parameters"] = escape(str(result["digest"]), 64)
        return found

    def _state(self, result: Mapping[str, Any]) -> tuple[str, str]:
        """The state of the run, and a sentence about it."""
        if result:
            return str(result.get("outcome") or "finished"), escape(str(result.get("reason") or ""), 500)
        done = self._history.last + 1
        said = f"{done} rounds are done" + (
            f"; the last: {self._history.skipped}" if self._history.skipped else ""
        )
        if self._goes_on():
            return "running", said
        return "stopped", f"{said}, and no server works on it: varangian run --resume {self.folder}"

    def _goes_on(self) -> bool:
        """Whether a server may work in the folder."""
        line = next(reversed([line for line in _tail(self.folder / LOCK).splitlines() if line.strip()]), "")
        known: dict[str, Any] = {}
        with suppress(ValueError):
            known = json.loads(line)
        if not known:  # a simulation that keeps nothing has no lock
            with suppress(OSError):
                return time.time() - (self.folder / ROUNDS).stat().st_mtime < 60
            return False
        if known.get("ended"):
            return False
        here = known.get("host") == socket.gethostname()
        with suppress(OSError):
            if here and known.get("boot") != BOOT.read_text().strip():
                return False
        try:
            if here:
                os.kill(int(known.get("pid") or 0), 0)
        except ProcessLookupError:
            return False
        except (OSError, ValueError):
            return True
        return True

    def _records(self) -> Iterator[dict[str, Any]]:
        """Whole records that are new."""
        path = self.folder / ROUNDS
        if not path.exists():
            return
        if path.stat().st_size < self._read:  # another run has its place
            self._history, self._read = History(), 0
        with path.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                with suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and isinstance(record.get("round"), int):
                        yield record

    def _times(self) -> tuple[float | None, float | None]:
        """Seconds of the run, and its rounds in a second lately."""
        try:
            with (self.folder / METRICS).open(encoding="utf-8", errors="replace") as stream:
                columns = next(csv.reader(stream), [])
            rows = list(csv.reader(_tail(self.folder / METRICS).splitlines()[1:]))
            place, round = columns.index("time"), columns.index("round")
            found = [(float(row[place]), int(row[round])) for row in rows if len(row) == len(columns)]
        except (OSError, ValueError, csv.Error):
            return None, None
        if not found:
            return None, None
        (first, early), (last, late) = found[max(0, len(found) - LATELY)], found[-1]
        return last, rounded((late - early) / (last - first)) if last > first and late > early else None


def _tail(path: Path) -> str:
    """The last lines of a file, the first of which may be cut; empty if there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none, or it is being replaced."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

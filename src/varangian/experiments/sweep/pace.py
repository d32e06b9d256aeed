"""The pace of a sweep: how long runs take, from those that are finished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.config.yaml_text import read
from varangian.experiments.results.run import CONFIG, RESULT, RUNNING
from varangian.experiments.sweep.plan import Plan
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.registry import ConfigError

ALIKE = ("backend", "data", "model", "workers", "worker")
"""Settings that decide how long a round takes, most of all."""
LOOKED_AT = 50
"""Run folders that are looked at where no run of the plan is finished."""


@dataclass
class Pace:
    """Seconds and rounds of finished runs."""

    seconds: float = 0.0
    rounds: int = 0
    runs: int = 0

    def add(self, rounds: int, seconds: float) -> None:
        if rounds > 0:
            self.rounds, self.seconds, self.runs = (
                self.rounds + rounds,
                self.seconds + seconds,
                self.runs + 1,
            )

    def seconds_for(self, rounds: float, jobs: int) -> float | None:
        """The time of so many rounds in so many processes; None before any run is finished."""
        return self.seconds / self.rounds * rounds / jobs if self.rounds else None


def pace_of_finished(plan: Plan) -> Pace:
    """The pace of the finished runs of a plan; or of others in the same folder that are like them."""
    folders, pace = RunFolders(plan.output), Pace()
    _add(pace, folders, (point.id for point in plan.points))
    if not pace.runs and plan.output.is_dir():
        wanted = plan.points[0].config.resolved()
        # Runs in hand end meanwhile, and their folders get other names.
        over = [path for path in plan.output.iterdir() if not path.name.endswith(RUNNING)]
        others = [path for path in over if (path / RESULT).is_file()]
        recent = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[:LOOKED_AT]
        _add(pace, folders, (path.name for path in recent if _alike(path, wanted)))
    return pace


def _add(pace: Pace, folders: RunFolders, ids: Iterable[str]) -> None:
    for id in ids:
        if (result := folders.result(id)) is not None and result.get("outcome") == "finished":
            pace.add(result.get("rounds", 0), result.get("seconds", 0.0))


def _alike(path: Path, wanted: dict[str, Any]) -> bool:
    try:
        found = read(path / CONFIG)
    except ConfigError:
        return False
    return all(found.get(name) == wanted[name] for name in ALIKE)


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, or `unknown`."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

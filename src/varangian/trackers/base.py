"""The interface of a tracker, and what it is told of a run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from varangian.own_classes import OwnClasses
from varangian.plugins import InputError
from varangian.registry import Problem, Registry, join
from varangian.server.observability.record import RoundRecord

MANIFEST = "manifest.json"


class TrackerError(InputError):
    """A tracker that cannot work as it is set up: it is not tried again. The text says what to do."""


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of a run when it begins."""

    id: str
    """The name of the run: that of its folder."""
    folder: Path
    """The run folder."""
    settings: Mapping[str, Any]
    """All settings, as in config.yaml."""
    workers: tuple[str, ...]
    """Names of the workers that the run begins with."""
    rounds: int
    following: int | None = None
    """The round that a run goes on with, which may have been done before; None for a new one."""
    kept: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the tracker has kept of this run before, as the name under which it is known there."""
    keep: Callable[[str, str], None] = lambda key, value: None
    """Keep a value in the run folder, so that a run that goes on is the same one in the tracker."""

    def manifest(self) -> dict[str, Any]:
        """Versions, seed, command and machine, as in manifest.json; empty if it cannot be read."""
        try:
            found = json.loads((self.folder / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def flat(self) -> dict[str, str | int | float | bool]:
        """All settings by their paths, as `optimizer.lr`; null and lists are text."""
        return dict(_flat(self.settings, ""))


class Tracking(Protocol):
    """One run in a tracker. All methods are called in one thread, one after the other.

    It may also have `flush()`, called when no further round waits; `weights(table)`, called before the end
    with a `WeightTable`; `shown_at`, a text that tells where to look; and `unsent`, the number of rounds
    that it has taken and not sent yet.
    """

    def round(self, record: RoundRecord, /) -> None:
        """Take the record of a round; also of one that is done again."""
        ...

    def end(self, result: Mapping[str, Any], /) -> None:
        """Take the end of the run: `outcome` is finished, interrupted or failed; see result.json."""
        ...


class Tracker(Protocol):
    """Where the numbers of a run are sent; its fields are its settings."""

    def begin(self, run: RunFacts, /) -> Tracking:
        """Begin a run, or go on with it: what follows it, which may be the tracker itself.

        Raises:
            TrackerError: it never will work as it is set up. Any other error is tried again.
        """
        ...


def _lacks(cls: type[Any]) -> str:
    if callable(getattr(cls, "begin", None)):
        return ""
    return (
        "should have the method of a tracker. It lacks `begin(run)`, which returns what follows the run: "
        "an object with `round(record)` and `end(result)`, as the tracker itself"
    )


TRACKERS: Registry[Tracker] = Registry("tracker", OwnClasses(_lacks))


def missing_packages(trackers: Iterable[Tracker] | None) -> list[Problem]:
    """A problem for each tracker whose package is not installed."""
    problems = list[Problem]()
    for place, tracker in enumerate(trackers or ()):
        package, extra = getattr(tracker, "package", ""), getattr(tracker, "extra", "")
        if isinstance(package, str) and package and importlib.util.find_spec(package) is None:
            rule = f"needs the package {package}, which is not installed"
            hint = f"Install it with pip install 'varangian[{extra}]', or leave the tracker out."
            path = join(f"trackers.{place}", TRACKERS.name(tracker))
            problems.append(Problem(path, rule, hint=hint))
    return problems


def _flat(value: Any, path: str) -> Iterable[tuple[str, str | int | float | bool]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, join(path, name))
    elif isinstance(value, str | int | float | bool):
        yield path, value
    else:
        yield path, "null" if value is None else json.dumps(value, default=str)

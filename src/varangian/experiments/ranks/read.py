"""The record of the steps of `varangian.torch`: read from its file, and counted for each rank."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BINS = 60
"""Most columns in which distances over all steps are shown."""
CERTAIN = 3
"""Steps with a fault from which on a rank is named first."""


class RanksError(Exception):
    """The file is no record of steps; the sentence says what was found."""


@dataclass
class Rank:
    """What is known of one rank."""

    rank: int
    host: str = ""
    device: str = ""
    dropped: int = 0
    """Steps in which its gradient was not finite."""
    far: int = 0
    """Steps in which it was more than three times as far from the update as the median rank's."""
    repeated: int = 0
    """Steps in which it was that of the step before, number for number."""
    opposed: int = 0
    """Steps in which it was certain that its gradients point against those of the others."""
    accused: int = 0
    """Steps in which an audit found that it computes wrongly for others."""
    weightless: int = 0
    """Steps in which its weight was 0."""
    faulty: list[int] = field(default_factory=list[int])
    """The steps with one of the first four."""
    weights: list[float] = field(default_factory=list[float])
    cosines: list[float] = field(default_factory=list[float])
    """With the gradients of the others, on average, in each step."""
    distances: dict[int, float] = field(default_factory=dict[int, float])
    """By step: how many times as far from the update as the median rank's."""

    @property
    def weight(self) -> float | None:
        """The mean of its weights."""
        return statistics.fmean(self.weights) if self.weights else None

    @property
    def agreement(self) -> float | None:
        """The mean of its cosines."""
        return statistics.fmean(self.cosines) if self.cosines else None

    def sentence(self, steps: int) -> str:
        """What is wrong with it, in a sentence; empty where nothing is."""
        where = f" (host {self.host}, {self.device})" if self.host else ""
        found = (
            f"Rank {self.rank}{where}: it computed wrongly for others in {self.accused} of {steps} "
            "steps, as an audit found."
        )
        if len(self.faulty) < CERTAIN and not self.opposed:
            return found if self.accused else ""
        what = {
            "not finite": self.dropped,
            "far from the update": self.far,
            "repeated": self.repeated,
            "against the others": self.opposed,
        }
        counts = ", ".join(f"{name} {count}" for name, count in what.items() if count)
        sentence = (
            f"Rank {self.rank}{where}: its gradient was wrong in {len(self.faulty)} of {steps} steps "
            f"({counts}), from step {self.faulty[0]} to step {self.faulty[-1]}."
        )
        return f"{sentence} {found}" if self.accused else sentence


@dataclass
class Record:
    """The record of all steps."""

    path: Path
    about: Mapping[str, Any]
    """Of the last start: n, f, aggregator."""
    ranks: list[Rank]
    steps: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """Steps without an update, and why."""
    last: int = 0

    @property
    def sentences(self) -> list[str]:
        """What is wrong with ranks, the worst first; and with steps."""
        worst = sorted(self.ranks, key=lambda rank: (-rank.accused, -len(rank.faulty)))
        found = [sentence for rank in worst if (sentence := rank.sentence(self.steps))]
        if self.errors:
            step, why = self.errors[0]
            found.append(f"{len(self.errors)} steps have no update; the first is step {step}: {why}")
        return found or [f"No rank was wrong in {CERTAIN} or more of {self.steps} steps."]

    def strips(self) -> tuple[list[str], list[list[float | None]]]:
        """The largest relative distance of each rank in some steps at a time: headings, and rows."""
        wide = max(1, math.ceil((self.last + 1) / BINS))
        starts = range(0, self.last + 1, wide)
        rows: list[list[float | None]] = []
        for rank in self.ranks:
            largest: dict[int, float] = {}
            for step, distance in rank.distances.items():
                largest[step // wide] = max(largest.get(step // wide, 0.0), distance)
            rows.append([largest.get(place) for place in range(len(starts))])
        return [str(start) for start in starts], rows


def is_record(path: Path) -> bool:
    """Whether a path is that of such a file, and not that of a run."""
    return path.is_file() and path.suffix == ".jsonl" and not (path.parent / "config.yaml").is_file()


def read(path: Path) -> Record:
    """The record in a file. A last line that is cut off, as that of a run which goes on, is left out.

    Raises:
        RanksError: it cannot be read, or is no record of steps.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise RanksError(f"{path} cannot be read: {error.strerror}") from error
    found: Record | None = None
    for number, values in enumerate(_parsed(path, lines), start=1):
        about = values.get("ranks")
        if isinstance(about, Mapping):
            found = _started(path, about, found, number)
        elif found is None:
            raise _unfit(path, 1, "should say how many ranks there are, as varangian.torch writes it")
        else:
            _count(found, values, number)
    if found is None or not found.steps:
        raise RanksError(f"{path} should have a record of steps, as varangian.torch writes it. Found none.")
    return found


def _parsed(path: Path, lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise _unfit(path, number, "should be a JSON object")
        yield values


def _unfit(path: Path, line: int, rule: str) -> RanksError:
    return RanksError(f"{path}, line {line}: {rule}. Is it the file of `log=`?")


def _started(path: Path, about: Mapping[str, Any], before: Record | None, line: int) -> Record:
    n = about.get("n")
    if not isinstance(n, int) or not 1 <= n <= 1 << 20:
        raise _unfit(path, line, f"n should be the number of ranks. Found {n!r}")
    hosts, devices = about.get("hosts") or [], about.get("devices") or []
    found = before or Record(path, about, [])
    found.about = about
    found.ranks += [Rank(place) for place in range(len(found.ranks), n)]
    for rank, host, device in zip(found.ranks, hosts, devices, strict=False):
        rank.host, rank.device = str(host), str(device)
    return found


def _count(found: Record, values: Mapping[str, Any], line: int) -> None:
    step = values.get("step")
    if not isinstance(step, int) or step < 0:
        raise _unfit(found.path, line, f"step should be a number of a step. Found {step!r}")
    found.steps += 1
    found.last = max(found.last, step)
    if (error := values.get("error")) is not None:
        found.errors.append((step, str(error)))
    wrong = {name: {*_numbers(values.get(name))} for name in ("dropped", "far", "repeated", "opposed")}
    accused = {*_numbers(values.get("accused"))}
    cosines = _numbers(values.get("agreement"))
    weights, distances = _numbers(values.get("weights")), _numbers(values.get("distances"))
    known = [distance for distance in distances if distance is not None]
    middle = statistics.median(known) if known else 0.0
    for rank in found.ranks:
        place = rank.rank
        rank.dropped += place in wrong["dropped"]
        rank.far += place in wrong["far"]
        rank.repeated += place in wrong["repeated"]
        rank.opposed += place in wrong["opposed"]
        rank.accused += place in accused
        if any(place in places for places in wrong.values()):
            rank.faulty.append(step)
        if place < len(weights) and (weight := weights[place]) is not None:
            rank.weights.append(weight)
            rank.weightless += weight == 0
        if place < len(cosines) and (cosine := cosines[place]) is not None:
            rank.cosines.append(cosine)
        if place < len(distances) and (distance := distances[place]) is not None and middle > 0:
            rank.distances[step] = distance / middle


def _numbers(values: Any) -> list[float | None]:
    """Numbers of a list, with None in the place of whatever is none."""
    given = values if isinstance(values, list) else []
    return [value if isinstance(value, int | float) and math.isfinite(value) else None for value in given]

"""The report of the aggregator benchmark; `Report.plain()` is its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1

Status = Literal["timed", "failed", "impossible"]
Verdict = Literal["agrees", "other convention"]


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats."""

    wall_ms: float
    cpu_ms: float
    """Processor time of all threads."""
    wall_x_mean: float
    """Median of the ratios to the mean of `rows.mean(0)` just before and just after."""
    cpu_x_mean: float
    repeats: int


@dataclass(frozen=True)
class Line:
    """One rule at one size."""

    name: str
    library: str
    f: int | None
    """The f that it was given; None where no number can be told."""
    status: Status
    error: float | None = None
    """Relative Euclidean distance to the reference backend, on the first columns of the same rows."""
    reason: str | None = None
    """The reason why it was not timed."""
    timing: Timing | None = None
    passes: float | None = None
    """The fewest passes over all rows that it needs; of ours only."""
    x_floor: float | None = None
    """Wall time over the time of those reads at the bandwidth of the copy."""
    against: str | None = None
    """Of a peer: the specification of ours that it was compared with."""
    verdict: Verdict | None = None

    @property
    def title(self) -> str:
        return self.name if self.library == "varangian" else f"{self.library} {self.name}"


@dataclass(frozen=True)
class Copy:
    """A copy of all rows, timed among the rules."""

    wall_ms: float
    bytes_moved: int
    """Read and written."""
    gigabytes_per_second: float


@dataclass(frozen=True)
class Size:
    """All rules at one (n, d)."""

    n: int
    d: int
    f: int
    """Rows that are Byzantine; what every rule is told that holds then."""
    backend: str
    mean: Timing
    copy: Copy
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return f"{self.n} x {self.d:.3g}".replace("e+0", "e")


@dataclass(frozen=True)
class Report:
    """All results, and the machine they were measured on."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    sizes: tuple[Size, ...]
    peers: dict[str, str] = field(default_factory=dict[str, str])
    """Version of each library that was asked for, or why it is not here."""

    @property
    def failed(self) -> list[str]:
        """Sentences about our own rules that are wrong."""
        return [
            f"{line.title}, {size.title}: {line.reason}"
            for size in self.sizes
            for line in size.lines
            if line.status == "failed" and line.library == "varangian"
        ]

    def plain(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

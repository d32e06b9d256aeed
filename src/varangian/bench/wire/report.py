"""The report of the wire benchmark; `Report.plain()` is its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 2

Status = Literal["measured", "failed", "absent"]


@dataclass(frozen=True)
class Speed:
    """Medians over the rounds; a gigabyte is 1e9 bytes of float32, whatever was on the wire."""

    gigabytes_per_second: float
    x_tcp: float
    """Median of the ratios to the raw TCP rounds just before and just after."""
    x_grpc: float | None
    """The same for raw bytes over gRPC in the same turn; None where those were not measured."""
    server_cpu: float
    """Seconds for each gigabyte, of all threads."""
    workers_cpu: float
    server_faults: float
    """Pages for each gigabyte that the kernel had to find."""
    payloads: float
    """Memory of the server at most, beyond what it held with its rows before the first round; in gradients
    of one worker, for all workers together."""
    seconds: tuple[float, ...]
    """Each round."""

    @property
    def cpu(self) -> float:
        return self.server_cpu + self.workers_cpu


@dataclass(frozen=True)
class Line:
    """One way in one setting."""

    name: str
    title: str
    kind: str
    status: Status
    reason: str | None = None
    """The reason why it was not measured."""
    speed: Speed | None = None


@dataclass(frozen=True)
class Setting:
    """So many workers with gradients of this size, all at once."""

    workers: int
    size: int
    """Bytes of one gradient in float32."""
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return title(self.workers, self.size)


@dataclass(frozen=True)
class Report:
    """All results, and the machine they were measured on."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    found: tuple[Setting, ...]
    peers: dict[str, str] = field(default_factory=dict[str, str])
    """Version of each other library."""

    @property
    def failed(self) -> list[str]:
        """Sentences about what should work and does not."""
        return [
            f"{line.title}, {setting.title}: {line.reason}"
            for setting in self.found
            for line in setting.lines
            if line.status == "failed" and line.kind != "peer"
        ]

    def plain(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def title(workers: int, size: int) -> str:
    return f"{workers} x {size / 1e6:g} MB"

"""Changes of settings between a run and the one that goes on from it: which may be, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from varangian.config import RunConfig
from varangian.registry import NOTHING, Problem, format_value, join

ALLOWED = (
    *("output", "trackers", "rounds", "metrics", "evaluate.every", "worker.patience", "worker.state"),
    *("server.host", "server.port", "server.data_port", "server.enrol_port"),
    *("server.metrics_port", "server.metrics_host", "server.metrics_token"),
    *("server.heartbeat", "server.tls", "server.traces", "worker.heartbeat", "worker.traces"),
    *("server.deadline", "server.deadline_floor", "server.deadline_ceiling"),
    *("server.wait_factor", "server.wait_floor", "server.wait_rounds"),
    *("server.absent_after", "server.stop_grace", "server.checkpoint", "server.keep_rows"),
    "server.rows_folder",
)
"""Settings that a run may go on with another value of: no round that was done would have been another."""
OF_HONEST_WORKERS = ("worker.per_process",)
"""Allowed as well where nobody attacks: attackers of one process share what they remember."""
FIXED = ("workers", "names", "f")
"""Settings of which a checkpoint has its own: not even `--force` goes on with other ones."""


@dataclass(frozen=True)
class Change:
    """A setting with another value than in the run that goes on."""

    path: str
    before: Any
    """NOTHING where the setting was missing."""
    after: Any

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: None if value is NOTHING else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.path} was {_shown(self.before)} and is {_shown(self.after)}"


def changes(before: RunConfig, after: RunConfig) -> list[Change]:
    """All settings in which two configurations differ."""
    return [*_changes(before.resolved(), after.resolved(), "")]


def refused(found: list[Change], config: RunConfig) -> list[Change]:
    """Those that rounds before them may have depended on."""
    honest = config.byzantine.attack is None or not config.byzantine_names
    allowed = (*ALLOWED, *(OF_HONEST_WORKERS if honest else ()))
    return [
        change for change in found if not any(f"{change.path}.".startswith(f"{path}.") for path in allowed)
    ]


def problems(found: list[Change]) -> list[Problem]:
    """A problem for each change that is refused, with both values."""
    forced = "`--force` goes on with it, and records the change."
    members = "A run keeps its workers; those of a server are changed by `varangian workers`."
    return [
        Problem(
            change.path,
            f"should be as in the run that goes on, {_shown(change.before)}",
            change.after,
            members if change.path in FIXED else forced,
        )
        for change in found
    ]


def learning_rates(before: RunConfig, after: RunConfig, round: int) -> Problem | None:
    """Why the number of rounds may not change: it would have changed the rates of rounds that are done.

    Args:
        before: the run up to this round.
        after: the run from it on.
        round: with which it goes on.
    """
    old, new = before.rounds, after.rounds
    if old == new:
        return None
    steps, inner = before.worker.local_steps, before.worker.inner
    if any(before.optimizer.rate(t, old) != before.optimizer.rate(t, new) for t in range(round)):
        schedule = before.resolved()["optimizer"].get("schedule")
    elif inner is not None and any(
        inner.rate(t, old * steps) != inner.rate(t, new * steps) for t in range(round * steps)
    ):
        ((_, fields),) = before.resolved()["worker"]["inner"].items()
        schedule = fields.get("schedule")
    else:
        return None
    name = next(iter(schedule)) if isinstance(schedule, Mapping) else schedule
    rule = f"should be as in the run that goes on, {old}, as its schedule {name} depends on it: "
    rule += f"rounds 0 to {round - 1} had the learning rates of rounds={old}, and rounds={new} has others"
    return Problem("rounds", rule, new, "`--force` goes on with it, and records the change.")


def _changes(before: Any, after: Any, path: str) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping) and before.keys() == after.keys():
        for name in before:
            yield from _changes(before[name], after[name], join(path, name))
    elif before != after:
        yield Change(path, before, after)


def _shown(value: Any) -> str:
    return format_value(value)

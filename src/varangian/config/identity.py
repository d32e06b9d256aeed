"""The identity of a run: what its numbers depend on, as a short name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from varangian.config.settings import AUTO, RunConfig

WITHOUT_EFFECT = (
    *("output", "trackers"),
    *("server.host", "server.port", "server.data_port", "server.enrol_port"),
    *("server.metrics_port", "server.metrics_host", "server.metrics_token"),
    *("server.heartbeat", "server.tls", "server.traces"),
    *("server.absent_after", "server.stop_grace", "server.checkpoint", "server.keep_rows"),
    "server.rows_folder",
    *("worker.per_process", "worker.patience", "worker.state", "worker.heartbeat", "worker.traces"),
)
"""Settings that say where a run takes place and what becomes of it; its numbers do not depend on them."""
OF_AUTO = ("server.deadline_floor", "server.deadline_ceiling")
"""Settings of a deadline that sets itself, without an effect where the deadline is a number."""
ADDED: Mapping[str, Any] = {
    "worker.inner": None,
    "server.fragments": 1,
    "server.gate": None,
    "weights": None,
    "weights_cap": None,
    "optimizer.dampening": 0.0,
    "optimizer.centered": False,
    "buffers": "refuse",
}
"""Settings that earlier versions did not have, with the value that stands for what those did. With it they
are left out, so that runs of earlier versions keep their identity."""
DIGITS = 16
"""Hexadecimal digits: among a million runs two have the same with a probability below 1e-7."""


def run_id(config: RunConfig) -> str:
    """The identity of a run: runs with the same one have the same numbers.

    Code of one's own (`module:function`) counts by its name, not by its content.
    """
    return identity_of(config.resolved())


def identity_of(settings: Mapping[str, Any]) -> str:
    """The identity of a run with these resolved settings."""
    text = json.dumps(with_effect(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake2b(text.encode(), digest_size=DIGITS // 2).hexdigest()


def with_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings without those on which the numbers of this run do not depend."""
    sets_itself = (settings.get("server") or {}).get("deadline") == AUTO
    paths = [*WITHOUT_EFFECT, *(() if sets_itself else OF_AUTO)]
    paths += [path for path, before in ADDED.items() if _at(settings, path, before) == before]
    return _without(settings, [path.split(".") for path in paths])


def has_effect(path: str) -> bool:
    """Whether the numbers of a run can depend on the setting at this path, or on one below it."""
    return not any(f"{path}.".startswith(f"{without}.") for without in WITHOUT_EFFECT)


def _at(settings: Any, path: str, missing: Any) -> Any:
    """The value at a path."""
    for name in path.split("."):
        if not isinstance(settings, Mapping) or name not in settings:
            return missing
        settings = settings[name]
    return settings


def _without(settings: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A copy of the settings without those at the paths."""
    here = {path[0] for path in paths if len(path) == 1}
    kept = {key: value for key, value in settings.items() if key not in here}
    for name in ({path[0] for path in paths} - here) & kept.keys():
        if isinstance(kept[name], Mapping):
            kept[name] = _without(kept[name], [path[1:] for path in paths if path[0] == name])
    return kept

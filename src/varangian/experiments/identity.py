"""The identity of a run: what its numbers depend on, as a short name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from varangian.config import RunConfig

WITHOUT_EFFECT = (
    "output",
    *("server.host", "server.port", "server.data_port", "server.heartbeat", "server.tls"),
    *("worker.per_process", "worker.patience"),
)
"""Settings that say where a run takes place and what becomes of it; its numbers do not depend on them."""
DIGITS = 16
"""Hexadecimal digits: among a million runs two have the same with a probability below 1e-7."""


def run_id(config: RunConfig) -> str:
    """The identity of a run: runs with the same one have the same numbers.

    Code of one's own (`module:function`) counts by its name, not by its content.
    """
    return identity_of(config.resolved())


def identity_of(settings: Mapping[str, Any]) -> str:
    """The identity of a run with these resolved settings."""
    kept = _without(settings, [path.split(".") for path in WITHOUT_EFFECT])
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake2b(text.encode(), digest_size=DIGITS // 2).hexdigest()


def _without(settings: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A copy of the settings without those at the paths."""
    here = {path[0] for path in paths if len(path) == 1}
    kept = {key: value for key, value in settings.items() if key not in here}
    for name in {path[0] for path in paths} - here:
        kept[name] = _without(kept[name], [path[1:] for path in paths if path[0] == name])
    return kept

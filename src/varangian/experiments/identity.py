"""The identity of a run: what its numbers depend on, as a short name."""

from __future__ import annotations

import json
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
    settings = config.resolved()
    for path in WITHOUT_EFFECT:
        _remove(settings, path.split("."))
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake2b(text.encode(), digest_size=DIGITS // 2).hexdigest()


def _remove(settings: dict[str, Any], keys: list[str]) -> None:
    *parents, last = keys
    for key in parents:
        settings = settings[key]
    del settings[last]

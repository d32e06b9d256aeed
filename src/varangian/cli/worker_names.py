"""`--claim`: the names of all honest, or all Byzantine, workers of a configuration."""

from __future__ import annotations

import os


def configured_names(kind: str, settings: list[str]) -> tuple[str, ...]:
    """The names of all honest, or all Byzantine, workers of a configuration."""
    # Loading a configuration imports torch, and most callers need none.
    from varangian.config import load

    config = load(None, settings, os.environ, whole=False)
    return config.honest_names if kind == "honest" else config.byzantine_names

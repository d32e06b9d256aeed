"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path in which `~` is the home folder, as in a shell, wherever it was written."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # the home of somebody unknown, as ~nobody-of-this-name/runs
        return path


def expanded(text: str) -> str:
    """The same as text, for an argument of a command."""
    return str(user_path(text))

"""Folders of states: where the workers of a run keep what they remember, by the setting `worker.state`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from varangian.files import user_path

AUTO: Final = "auto"
NO_NAME, LONGEST = re.compile(r"[^A-Za-z0-9._-]"), 200
"""Characters that the name of a folder of states has not, and how many it has at most."""


def state_folders(setting: str | None) -> Callable[[str], Path] | None:
    """From the name of a run to the folder for what its workers here keep; None keeps nothing."""
    if setting is None:
        return None
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    base = user_path(home) / "varangian" if setting == AUTO else user_path(setting)
    # The server has named the run; a name that could be a path becomes another one.
    return lambda run: base / (NO_NAME.sub("_", run)[:LONGEST].lstrip(".") or "run")

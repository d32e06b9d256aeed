"""Notes, errors and outcomes of a run, as a user sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Note = Callable[[str], None]
"""Takes a sentence that a user should know besides the rounds; called from any thread."""


class RunError(Exception):
    """A run that cannot go on; the sentence says why and what to do."""


Outcome = Literal["finished", "failed", "interrupted"]
"""finished: all rounds are done; failed: they cannot be; interrupted: by a signal."""

"""How often a call is tried, and how long to wait in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with jitter, capped."""

    tries: int = 10
    first: float = 0.1
    """Seconds at most before the second try; each further wait may be twice as long."""
    most: float = 5.0
    """Seconds at most before any try."""

    def delays(self) -> Iterator[float]:
        """Seconds to wait after each failure but the last.

        Between half of the wait and all of it, so that workers which failed together do not all come back
        together. This randomness decides no result of a run.
        """
        for attempt in range(self.tries - 1):
            longest = min(self.first * 2.0**attempt, self.most)
            yield longest * random.uniform(0.5, 1.0)


DEFAULT_BACKOFF = Backoff()

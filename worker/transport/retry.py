"""Exponential back-off with jitter, and for how long calls are tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with jitter, capped; without a limit unless one is given."""

    tries: float = inf
    """The most attempts of a call."""
    first: float = 0.1
    """Seconds at most before the second try; each further wait may be twice as long."""
    most: float = 5.0
    """Seconds at most before any try."""
    patience: float = inf
    """Seconds after the first failure in which a call is tried again."""

    def delays(self) -> Iterator[float]:
        """Seconds to wait after each failure but the last.

        Between half of the wait and all of it, so that workers which failed together do not all come back
        together. This randomness decides no result of a run.
        """
        longest, failures = self.first, 1
        while failures < self.tries:
            yield min(longest, self.most) * random.uniform(0.5, 1.0)
            longest, failures = min(2 * longest, self.most), failures + 1


DEFAULT_BACKOFF = Backoff()

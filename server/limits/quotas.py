"""Rate limits and quotas: calls per second of a caller, uploads, downloads and joins of a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal

DOWNLOAD_EVERY = 5.0
"""Seconds for one more download of the same parameters."""
JOINS_PER_SECOND = 2.0
LONGEST_DELAY = 1.0
"""Seconds that a call is delayed at most; one that would have to wait longer is refused after them."""
MOST_CALLERS = 4096
"""Callers that are told apart; without TLS anyone may be one, under each address that he has."""
GUESSES_PER_MINUTE = 5.0
"""Wrong enrolment tokens of one address."""


class TokenBucket:
    """Token bucket: a rate, and a burst after a while without.

    Args:
        rate: tokens that are added in a second.
        most: tokens that it holds, and begins with.
        clock: seconds from any start.
    """

    def __init__(self, rate: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._most = most
        self._clock = clock
        self._left = most
        self._at = clock()

    @property
    def full(self) -> bool:
        """Whether it holds all the tokens that it can."""
        self._refill()
        return self._left >= self._most

    @property
    def empty(self) -> bool:
        """Whether there is no token to take."""
        self._refill()
        return self._left < 1

    def give(self) -> None:
        """Put a token back."""
        self._left = min(self._most, self._left + 1)

    def take(self) -> float:
        """Take a token, also one that is not there yet; returns in how many seconds it will be."""
        self._refill()
        self._left -= 1
        return max(0.0, -self._left / self._rate)

    def try_to_take(self) -> bool:
        """Take a token if there is one."""
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now


class Calls:
    """Rate limit of calls for each caller: too many are delayed, then refused, then the caller is cut off.

    What a round needs is given back, so that fast rounds are not limited.

    Args:
        rate: calls in a second.
        most: calls at once.
        clock: seconds from any start.
    """

    def __init__(
        self, rate: float = 25.0, most: float = 100.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self._most, self._clock = rate, most, clock
        self._callers: dict[str, tuple[TokenBucket, TokenBucket]] = {}

    def take(self, who: str) -> tuple[float, bool]:
        """Count a call; returns in how many seconds to answer it, and whether to refuse it then.

        Raises:
            CutOffError: the caller goes on although it was refused so often.
        """
        if len(self._callers) >= MOST_CALLERS:
            self._callers = {name: pair for name, pair in self._callers.items() if not pair[0].full}
            if len(self._callers) >= MOST_CALLERS:
                who = "callers that are too many to be told apart"
        if who not in self._callers:
            allowed = TokenBucket(self.rate, self._most, self._clock)
            self._callers[who] = allowed, TokenBucket(self.rate, 2 * self._most, self._clock)
        calls, refusals = self._callers[who]
        delay = calls.take()
        if delay <= LONGEST_DELAY:
            return delay, False
        calls.give()
        if not refusals.try_to_take():
            raise CutOffError
        return LONGEST_DELAY, True

    def give(self, who: str) -> None:
        """Do not count a call after all: a round needed it."""
        if who in self._callers:
            self._callers[who][0].give()


class Guesses:
    """Rate limit of wrong enrolment tokens for each address; beyond it none from there is looked at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: dict[str, TokenBucket] = {}

    def check(self, address: str) -> None:
        """A token is about to be looked at.

        Raises:
            Refused: too many wrong ones came from this address.
        """
        bucket = self._addresses.get(address)
        if bucket is not None and bucket.empty:
            raise Refused(Refusal.GUESSES, rate=GUESSES_PER_MINUTE)

    def note(self, address: str) -> None:
        """A token was wrong."""
        if len(self._addresses) >= MOST_CALLERS:
            self._addresses = {name: one for name, one in self._addresses.items() if not one.full}
        if address not in self._addresses:
            if len(self._addresses) >= MOST_CALLERS:
                return  # 160 random bits withstand guesses from however many addresses
            self._addresses[address] = TokenBucket(GUESSES_PER_MINUTE / 60, GUESSES_PER_MINUTE, self._clock)
        self._addresses[address].try_to_take()


class CutOffError(Exception):
    """A caller is cut off, since it goes on calling although it is refused."""


@dataclass
class RoundQuotas:
    """Quotas of each worker: uploads and downloads of a round, and joins.

    Honest workers need one of each in a round, and a few more on a connection that breaks.
    """

    uploads: int
    """Of one worker, begun in one round."""
    downloads: int
    """Of one worker and round, at once; after that one more each `DOWNLOAD_EVERY` seconds."""
    joins: int
    """Of one worker, at once; after that `JOINS_PER_SECOND`."""
    clock: Callable[[], float] = time.monotonic
    _uploads: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    _downloads: dict[str, tuple[int, TokenBucket]] = field(
        default_factory=dict[str, tuple[int, TokenBucket]]
    )
    _joins: dict[str, TokenBucket] = field(default_factory=dict[str, TokenBucket])

    def upload(self, worker: str, round: int) -> None:
        """An upload begins.

        Raises:
            Refused: there were too many in this round.
        """
        at, count = self._uploads.get(worker, (round, 0))
        count = count + 1 if at == round else 1
        if count > self.uploads:
            raise Refused(Refusal.UPLOADS, most=self.uploads)
        self._uploads[worker] = round, count

    def download(self, worker: str, round: int) -> None:
        """A download begins.

        Raises:
            Refused: there were too many, too fast.
        """
        at, bucket = self._downloads.get(worker, (-1, None))
        if bucket is None or at != round:
            bucket = TokenBucket(1 / DOWNLOAD_EVERY, self.downloads, self.clock)
            self._downloads[worker] = round, bucket
        if not bucket.try_to_take():
            raise Refused(Refusal.PULLS, seconds=DOWNLOAD_EVERY)

    def join(self, worker: str) -> None:
        """A worker joins.

        Raises:
            Refused: there were too many joins, too fast.
        """
        bucket = self._joins.get(worker)
        if bucket is None:
            bucket = self._joins[worker] = TokenBucket(JOINS_PER_SECOND, self.joins, self.clock)
        if not bucket.try_to_take():
            raise Refused(Refusal.JOINS, rate=JOINS_PER_SECOND)

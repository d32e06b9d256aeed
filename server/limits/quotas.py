"""What one worker may ask for, however hard it tries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal


@dataclass(frozen=True)
class Limits:
    """What one caller may cost."""

    idle: float = 10.0
    """Seconds without a message after which a stream is given up."""
    joining: float = 60.0
    """Seconds for the message of a join: a large model has a long layout, and a line may be slow."""
    streams: int = 2
    """Streams that one worker may have open: a second one, so that a retry need not wait for a dead one."""
    receiving: int = 4
    """Uploads that receive at the same time."""
    turn: float = 0.25
    """Seconds that an upload receives while others wait."""
    share: int = 4 << 20
    """Bytes that it receives in a turn: about a block of columns, so that rows grow together."""
    uploads: int = 16
    """Uploads that one worker may begin in a round."""
    downloads: int = 8
    """Downloads of the same parameters that one worker may have at once; more come by and by."""
    joins: int = 20
    """Joins of one worker at once; more come by and by."""
    calls: float = 25.0
    """Calls of one caller in a second; those that a round needs are given back."""
    calls_at_once: int = 100
    """The same after a while without any."""
    status: float = 0.25
    """Seconds for which one reply to Status is sent to everybody who asks."""
    patience: float = 5.0
    """Seconds that a pull waits for a round to open before the worker has to ask again."""
    grace: float = 5.0
    """Seconds for the workers to hear that the run is finished."""
    age: float = 3600.0
    """Seconds for which a call that is to stay open does so; then it is made anew."""


DEFAULT_LIMITS = Limits()


class StreamQuota:
    """How many streams each worker has open."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = Counter[str]()

    @contextmanager
    def stream(self, worker: str) -> Generator[None, None, None]:
        """One stream, for as long as the context lasts.

        Raises:
            Refused: when the worker has as many as it may have.
        """
        if self._open[worker] >= self._most:
            raise Refused(Refusal.STREAMS, most=self._most)
        self._open[worker] += 1
        try:
            yield
        finally:
            self._open[worker] -= 1


class TokenBucket:
    """Something that may be had at some rate, and so much of it at once after a while without.

    Args:
        rate: how much there is more of in each second.
        most: how much there is at most.
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
        """Whether it is as if nobody had ever taken anything."""
        self._refill()
        return self._left >= self._most

    def give(self) -> None:
        """Put one back."""
        self._left = min(self._most, self._left + 1)

    def take(self) -> float:
        """Take one, if need be before it is there: in how many seconds it will be."""
        self._refill()
        self._left -= 1
        return max(0.0, -self._left / self._rate)

    def try_to_take(self) -> bool:
        """Take one if it is there."""
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
    """Token bucket of calls for each caller: who makes too many is slowed down, refused, then cut off.

    What a round needs is given back, so that fast rounds are no offence.

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
        """One more call: in how many seconds to answer it, and whether to refuse it then.

        Raises:
            CutOffError: it goes on although it was refused so often.
        """
        if len(self._callers) >= CALLERS:
            self._callers = {name: pair for name, pair in self._callers.items() if not pair[0].full}
            if len(self._callers) >= CALLERS:
                who = "callers that are too many to be told apart"
        if who not in self._callers:
            allowed = TokenBucket(self.rate, self._most, self._clock)
            self._callers[who] = allowed, TokenBucket(self.rate, 2 * self._most, self._clock)
        calls, refusals = self._callers[who]
        delay = calls.take()
        if delay <= LATE:
            return delay, False
        calls.give()
        if not refusals.try_to_take():
            raise CutOffError
        return LATE, True

    def give(self, who: str) -> None:
        """The call was one that a round needs: it does not count."""
        if who in self._callers:
            self._callers[who][0].give()


class CutOffError(Exception):
    """A caller that no refusal slows down."""


@dataclass
class RoundQuotas:
    """What each worker has had: uploads and downloads of the round it is at, and joins.

    Honest workers need one of each in a round, and a few more on a line that breaks.
    """

    uploads: int
    """Begun in one round."""
    downloads: int
    """Of one round, at once; after that one more each `RELIEF` seconds."""
    joins: int
    """At once; after that `JOINS_PER_SECOND`."""
    clock: Callable[[], float] = time.monotonic
    _uploads: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    _downloads: dict[str, tuple[int, TokenBucket]] = field(
        default_factory=dict[str, tuple[int, TokenBucket]]
    )
    _joins: dict[str, TokenBucket] = field(default_factory=dict[str, TokenBucket])

    def upload(self, worker: str, round: int) -> None:
        """One more begins.

        Raises:
            Refused: when there were too many.
        """
        at, count = self._uploads.get(worker, (round, 0))
        count = count + 1 if at == round else 1
        if count > self.uploads:
            raise Refused(Refusal.UPLOADS, most=self.uploads)
        self._uploads[worker] = round, count

    def download(self, worker: str, round: int) -> None:
        """One more begins.

        Raises:
            Refused: when there were too many, too fast.
        """
        at, bucket = self._downloads.get(worker, (-1, None))
        if bucket is None or at != round:
            bucket = TokenBucket(1 / RELIEF, self.downloads, self.clock)
            self._downloads[worker] = round, bucket
        if not bucket.try_to_take():
            raise Refused(Refusal.PULLS, seconds=RELIEF)

    def join(self, worker: str) -> None:
        """One more.

        Raises:
            Refused: when there were too many, too fast.
        """
        bucket = self._joins.get(worker)
        if bucket is None:
            bucket = self._joins[worker] = TokenBucket(JOINS_PER_SECOND, self.joins, self.clock)
        if not bucket.try_to_take():
            raise Refused(Refusal.JOINS, rate=JOINS_PER_SECOND)


RELIEF = 5.0
JOINS_PER_SECOND = 2.0
LATE = 1.0
"""Seconds that a call is delayed at most; one that would have to wait longer is refused after them."""
CALLERS = 4096
"""Callers that are told apart; without TLS anyone may be one, under each address that he has."""

"""`Limits`: every limit of one caller in one place, the rates and the times that the server waits."""

from __future__ import annotations

from dataclasses import dataclass

from varangian.protos.messages import INLINE_LIMIT


@dataclass(frozen=True)
class Limits:
    """Limits of one caller: rates, and the time that the server waits for it."""

    idle: float = 10.0
    """Seconds without a message after which a stream is given up."""
    joining: float = 60.0
    """Seconds for the message of a join: a large model has a long layout, and a line may be slow."""
    streams: int = 2
    """Streams that one worker may have open: a second one, so that a retry need not wait for a dead one."""
    receiving: int = 4
    """Uploads that receive at the same time."""
    turn_seconds: float = 0.25
    """Seconds of a turn, for which an upload receives while others wait."""
    turn_bytes: int = 4 << 20
    """Bytes of a turn: about a block of columns, so that rows grow together."""
    uploads: int = 16
    """Uploads that one worker may begin in a round."""
    downloads: int = 8
    """Downloads of the same parameters that one worker may have at once; one more each 5 s."""
    joins: int = 20
    """Joins of one worker at once; two more each second."""
    calls: float = 25.0
    """Calls of one caller in a second; those that a round needs do not count."""
    calls_at_once: int = 100
    """The same after a while without any."""
    status: float = 0.25
    """Seconds for which one reply to Status is sent to all callers."""
    patience: float = 5.0
    """Seconds that a pull waits for a round to open before the worker has to ask again."""
    inline: int = INLINE_LIMIT
    """Bytes of parameters up to which they, and each vector, travel in one message with their manifest."""
    grace: float = 5.0
    """Seconds for the workers to hear that the run is finished."""
    restart: float = 20.0
    """Seconds since it was last there for which a worker that is gone may come back to hear it: an engine
    restarts a container or a pod in that time, and a worker that hears nothing waits for its server."""
    age: float = 3600.0
    """Seconds after which a call that is to stay open has to be made anew."""

    def inline_bytes(self, numel: int) -> int:
        """Bytes of so many parameters if they travel in one message with their manifest; 0 if not."""
        size = 4 * numel
        return size if size <= self.inline else 0


DEFAULT_LIMITS = Limits()

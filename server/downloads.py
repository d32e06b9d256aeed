"""The model on its way to those who pulled it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from varangian.protos import ps_pb2
from varangian.protos.codec import FLOAT32, Contract
from varangian.server import streams
from varangian.server.broadcast import Broadcast
from varangian.server.pulls import Pull, Pulls
from varangian.server.streams import Context
from varangian.server.views import Snapshot

AGAIN = ps_pb2.PullReply(again=ps_pb2.Again()).SerializeToString()


class Downloads:
    """All pulls of a run.

    Args:
        contract: what the run agreed on.
        pulls: knows whether somebody still waits for the answer.
        idle: seconds without progress after which a stream is given up.
        alive: called with the worker at each message.
    """

    def __init__(self, contract: Contract, pulls: Pulls, idle: float, alive: Callable[[str], None]) -> None:
        self._contract = replace(contract, dtype=FLOAT32)
        self._pulls = pulls
        self._idle = idle
        self._alive = alive
        self._broadcast: Broadcast | None = None

    async def model(self, worker: str, pull: Pull, chunk_bytes: int, context: Context) -> None:
        """Send the model of an answered pull, or say midway that there is a newer one to ask for.

        Raises:
            Refused: the other end lets us wait.
        """
        assert pull.snapshot is not None
        round, messages = pull.snapshot.round, self._shared(pull.snapshot).messages(chunk_bytes)
        async with streams.silence(self._idle) as silence:
            for message, pull.delivered in marked(messages):
                self._alive(worker)
                # A vector for a model that is too old by now would be refused.
                over = self._pulls.over(worker, round)
                with streams.unless_gone():
                    await silence.broken_by(context.write(AGAIN if over else message))
                if over:
                    return

    async def message(self, message: bytes, context: Context) -> None:
        """Send this alone."""
        async with streams.silence(self._idle) as silence:
            with streams.unless_gone():
                await silence.broken_by(context.write(message))

    def _shared(self, snapshot: Snapshot) -> Broadcast:
        """The newest is kept: it is what most ask for."""
        if self._broadcast is not None and self._broadcast.round == snapshot.round:
            return self._broadcast
        made = Broadcast(self._contract, snapshot.round, snapshot.payload, snapshot.digest)
        if self._broadcast is None or self._broadcast.round < snapshot.round:
            self._broadcast = made
        return made


def marked(messages: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each message, and whether it is the last."""
    rest = iter(messages)
    message = next(rest, None)
    while message is not None:
        following = next(rest, None)
        yield message, following is None
        message = following

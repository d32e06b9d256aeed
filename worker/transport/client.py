"""One worker's connection to the server."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio
from torch import Tensor

from varangian import __version__
from varangian.protos import ps_pb2
from varangian.protos.contract import (
    Contract,
    Terms,
    check_dtype,
    check_exact,
    check_fragments,
    check_protocol,
    check_round,
)
from varangian.protos.data_channel.connection import DataConnectionError
from varangian.protos.errors import Refused
from varangian.protos.layout import Layout, fragments_of
from varangian.protos.messages import INLINE_LIMIT, MANIFEST_LIMIT, PROTOCOL, decode_message
from varangian.protos.metadata_keys import SESSION, TOKEN, TRACE_PARENT, WORKER
from varangian.protos.network.chunk_size import ChunkSize
from varangian.protos.network.grpc_options import LOOKAHEAD, SMALL_MODEL_LOOKAHEAD
from varangian.protos.network.idle_timeout import idle_timeout
from varangian.protos.payloads.encoding import Dtype, Encoding, rounding_seed, take
from varangian.protos.refusals import Reaction, Refusal
from varangian.protos.text import escape
from varangian.structured_logs import event
from varangian.worker.transport.attendance import Attendance
from varangian.worker.transport.channel import Connection
from varangian.worker.transport.errors import SENTENCE_LIMIT, FailedCall, is_cancelled
from varangian.worker.transport.payloads.download import Incoming, message
from varangian.worker.transport.payloads.upload import Outgoing, upload
from varangian.worker.transport.results import Finished, Pulled, Receipt
from varangian.worker.transport.retry import DEFAULT_BACKOFF, Backoff
from varangian.worker.transport.tls import Proof

__all__ = ["Client", "ClientError", "Finished", "Pulled", "Receipt"]

log = logging.getLogger(__name__)
T = TypeVar("T")

DAMAGED = (Refusal.DIGEST, Refusal.TOO_FEW_BYTES)
"""Errors that a download can suffer on its way; anything else is a server that speaks otherwise."""


LOOK = 3
"""Failures in a row before the cause is looked for, and the log says what is being waited for."""
REMINDER = 60.0
"""Seconds between two lines of the log about one wait."""
DISPLACED = 60.0
"""Seconds after which a name that another process holds is taken to be that of a process which is alive."""
TAKEN_MOST = 1.0
"""Seconds at most between two tries to have a name that another process holds: a round may wait for it."""


SLOW_LINE = 600.0
"""Seconds for which payloads come in small pieces after one in a single message took too long."""
REASON = 1000
"""Characters of why a round is declined that are sent."""


class TransientError(Exception):
    """A call failed in a way that may pass."""


class ClientError(Exception):
    """The server cannot be used. The text says which, what was tried, and what to do."""

    refusal: Refusal | None = None
    """The refusal of the server that it was, if it was one."""


class Client:
    """The calls of one worker, over a channel of its own. Every call may be repeated without harm.

    Args:
        server: `host:port`.
        name: the worker's name.
        proof: the token that the server made for this name; or, over TLS, the bundle of this name.
        layout: the parameters of the worker's model.
        with_buffers: the same with buffers behind them, for a server that takes them.
        common: the text of what this machine should have in common with the server.
        backoff: how patiently calls are tried again. A server that is gone is waited for, by default
            without a limit: only what no repetition can change is an error.
        idle: seconds without any progress after which a call counts as dead. Large models on slow lines
            need no longer: only silence is measured, not the whole transfer.
        sleep, now: for tests.
    """

    def __init__(
        self,
        server: str,
        name: str,
        proof: Proof,
        layout: Layout,
        *,
        with_buffers: Layout | None = None,
        common: str = "",
        backoff: Backoff = DEFAULT_BACKOFF,
        idle: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._server = server
        self._plain, self._with_buffers = layout, with_buffers
        self._layout = layout
        self.common = common
        """The text of what this machine should have in common with the server, for the next join."""
        self._backoff = backoff
        self._idle = idle
        self._sleep = sleep
        self._now = now
        token = ((TOKEN, proof),) if isinstance(proof, str) else ()
        self._identity = ((WORKER, name), *token, (SESSION, secrets.token_hex(16)))
        self._metadata = grpc.aio.Metadata(*self._identity)
        """The same as gRPC takes it without making it anew for each call."""
        small = 4 * layout.numel <= INLINE_LIMIT
        self._connection = Connection(server, proof, SMALL_MODEL_LOOKAHEAD if small else LOOKAHEAD)
        self._attendance = Attendance(self._connection, self._identity)
        self._contract = Contract("", layout)
        """Of what comes. What goes may be written in another way."""
        self._sends = Encoding(layout.numel)
        self._inline = False
        """Whether payloads may travel in one message with their manifest."""
        self._inline_from = -inf
        """Until then they do not: the line was too slow for it."""
        self._pace = ChunkSize()
        self._incoming = Incoming(layout.numel)
        self.traced = False
        """Whether to look for the span of a round, which a server with traces tells with its parameters."""
        self._trace_parent = ""
        self._newest = -1
        """The last round that was pulled from this run."""
        self._again: int | None = None
        """The round after which to pull although later ones were pulled: the server has lost them."""
        self._over: Finished | None = None
        """The end of the run, once a join has told it: the server may be gone soon."""

    @property
    def run(self) -> str:
        """The run that it has joined last."""
        return self._contract.run_id

    @property
    def buffers(self) -> int:
        """How many numbers at the end of a vector the server takes for buffers."""
        return self._sends.exact

    @property
    def dtype(self) -> Dtype:
        """The type in which the server wants the numbers of vectors."""
        return self._sends.dtype

    @property
    def terms(self) -> Terms:
        """The terms of a resumption, of the start of the server that it has joined last."""
        return self._contract.terms

    @property
    def _start(self) -> tuple[str, int]:
        """The start of a server that it has joined last."""
        return self._contract.run_id, self._contract.terms.epoch

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._attendance.end()
        await self._connection.close()

    async def join(self) -> int:
        """Agree on protocol, run and layout; returns the round that the server is in.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        if self._over is not None:  # and the server may be gone by now
            return self._newest
        return await self._persistently("join", self._join)

    async def claim(self) -> bool:
        """Join, unless another process speaks for this worker: then False, without waiting for its end.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        return await self._persistently("join", self._claim)

    async def pull(self, after: int) -> Pulled | Finished:
        """The parameters of the first open round later than `after` (-1 for any), as soon as there is one.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        while True:
            answer = await self._persistently("pull the parameters", lambda: self._pull(after))
            if answer is not None:
                return answer

    async def push(self, round: int, vector: Tensor) -> Receipt:
        """Send a float32 vector for a round; it must not change meanwhile.

        A vector that the server does not count is no error: the receipt says why.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        if vector.shape != (self._layout.numel,):
            raise ValueError(
                f"`vector` should have shape ({self._layout.numel},). Found {tuple(vector.shape)}."
            )
        start, tries = self._start, 0
        vector = self._fragment(round, vector)
        outgoing = Outgoing(vector, self._encoding(round), rounding_seed(self.name, round))

        async def attempt() -> Receipt:
            nonlocal tries
            if self._over is not None:
                return Receipt(False, Refusal.FINISHED.code, Refusal.FINISHED.sentence)
            while self._start == start:
                if tries and not outgoing.digest:
                    await asyncio.to_thread(outgoing.compute_digest)
                tries += 1
                receipt = await self._push(round, outgoing)
                if receipt.code != Refusal.REPEATED.code or tries > 1:
                    return receipt
            return Receipt(False, Refusal.RUN.code, "The server was started again; pull its parameters.")

        return await self._persistently(f"push round {round}", attempt)

    def _fragment(self, round: int, vector: Tensor) -> Tensor:
        """The part of a vector that is pushed in a round."""
        count = self.terms.fragments
        if count == 1:
            return vector
        fragments = fragments_of(self._layout, count)
        return take(vector, fragments.slices[fragments.of(round)])

    def _encoding(self, round: int) -> Encoding:
        """The places of its numbers in the payload."""
        return replace(self._sends, numel=self._contract.of_push(round).numel)

    async def decline(self, round: int, reason: str) -> None:
        """Say that nothing comes in a round, and why, in one sentence.

        Raises:
            ClientError: when the server cannot be reached or does not take this worker.
        """
        start = self._start

        async def attempt() -> None:
            if self._start == start and self._over is None:
                await self._decline(round, reason)

        await self._persistently(f"decline round {round}", attempt)

    async def _persistently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds, cannot succeed, or patience is at its end."""
        delays, failures, began, told = self._backoff.delays(), 0, self._now(), -inf
        while True:
            try:
                return await self._once(what, call)
            except TransientError as error:
                passing = error.with_traceback(None)  # whose frames would hold it
            failures, waited = failures + 1, self._now() - began
            delay = next(delays, None)
            if delay is None or waited >= self._patience(passing):
                raise await self._given_up(what, failures, waited, passing)
            if failures >= LOOK and waited >= told + REMINDER:
                await self._look(what, waited, passing)
                told = waited
            await self._sleep(min(delay, TAKEN_MOST) if _name_is_taken(passing) else delay)

    def _patience(self, passing: TransientError) -> float:
        """Seconds. A process that is dead gives its name up soon; one that is alive keeps it.

        A bundle is replaced soon, too, or not at all.
        """
        (cause,) = passing.args
        renewable = isinstance(cause, FailedCall) and cause.reaction is Reaction.RENEW
        brief = renewable or _name_is_taken(passing)
        return min(self._backoff.patience, DISPLACED) if brief else self._backoff.patience

    async def _given_up(
        self, what: str, failures: int, waited: float, passing: TransientError
    ) -> ClientError:
        tries = "1 try" if failures == 1 else f"{failures} tries in {waited:.0f} s"
        why, _ = await self._why(passing)
        return ClientError(f"{self._failed(what)} after {tries}. {why}")

    async def _look(self, what: str, waited: float, passing: TransientError) -> None:
        """Say why nothing works, begin with another connection, and go on unless that cannot help."""
        await self._connection.reconnect()
        why, final = await self._why(passing)
        if final:
            raise ClientError(f"{self._failed(what)}. {why}") from None
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - waited))
        log.warning(
            "%s yet, since %s; trying again. %s",
            self._failed(what),
            since,
            why,
            extra=event("server_awaited"),
        )

    async def _why(self, passing: TransientError) -> tuple[str, bool]:
        """The known cause of a failure, and whether it will last longer than a moment."""
        (cause,) = passing.args
        if not isinstance(cause, FailedCall) or cause.code:
            return str(cause), False  # the answer of a server that can be reached
        found = await self._connection.diagnose(cause.hint)
        return f"{cause.words} {found.sentence}", found.final

    async def _once(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._connection.refresh()
            return await call()
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            failed = FailedCall(grpc.StatusCode.CANCELLED, "", "the call was cancelled", None)
        except TimeoutError:
            # The next try must not wait behind what is still on its way.
            await self._connection.reconnect()
            words = f"silence for {self._idle:g} s"
            failed = FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED, "", words, None)
        except grpc.aio.AioRpcError as error:
            failed = FailedCall.of(error)
        except DataConnectionError as error:
            raise TransientError(error) from None
        except Refused as error:
            if error.refusal in DAMAGED:
                raise TransientError(error) from None
            raise ClientError(f"{self._failed(what)}. {error}") from None
        if failed.status is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._pace.stalled()
            self._incoming.stalled()
            self._inline_from = self._now() + SLOW_LINE
        if failed.reaction is Reaction.RENEW and await self._connection.take_new_certificate():
            raise TransientError(failed)
        if failed.reaction is Reaction.REJOIN and what != "join":
            # The server was started again, with this run or another one.
            await self._once("join", self._join)
            raise TransientError(failed)
        if failed.reaction is Reaction.RETRY:
            raise TransientError(failed)
        final = ClientError(f"{self._failed(what)}. {failed}")
        final.refusal = failed.refusal
        raise final

    def _failed(self, what: str) -> str:
        return f"Worker {self.name} could not {what} at {self._server}"

    async def _join(self, layout: Layout | None = None) -> int:
        layout = layout or self._plain
        request = ps_pb2.JoinRequest(
            protocol=PROTOCOL,
            layout=layout.text,
            software=f"varangian {__version__}",
            common=self.common,
        )
        data = await self._connection.calls.join(
            request.SerializeToString(), metadata=self._identity, timeout=self._idle
        )
        reply = decode_message(ps_pb2.JoinReply, data, MANIFEST_LIMIT)
        check_protocol(reply.protocol)
        check_round(reply.round)
        if reply.buffers and not layout.buffers and self._with_buffers is not None:
            return await self._join(self._with_buffers)  # which the server compares with its own
        if layout.numel != self._layout.numel:
            self._incoming = Incoming(layout.numel)
        self._layout, numel = layout, layout.numel
        self._sends = Encoding(numel, check_dtype(reply.dtype), check_exact(reply.buffers, numel))
        self._inline = reply.inline
        self._pace.set_limit(reply.chunk_bytes)
        self._connection.data_channel.set_port(reply.data_port)
        terms = Terms.of(reply)
        check_fragments(self._layout, terms.fragments)
        another = self._contract.run_id and self._start != (reply.run_id, terms.epoch)
        if another or reply.round < self._newest:
            # A server that was started again begins anew, or does the rounds once more that it has lost.
            self._newest, self._again = -1, reply.round - 1
        self._contract = Contract(reply.run_id, self._layout, terms=terms)
        self._over = Finished(escape(reply.finished, SENTENCE_LIMIT)) if reply.finished else None
        self._attendance.begin(reply.run_id)
        return reply.round

    async def _claim(self) -> bool:
        try:
            await self._join()
        except grpc.aio.AioRpcError as error:
            if FailedCall.of(error).refusal is Refusal.SESSION_TAKEN:
                return False
            raise
        return True

    async def _pull(self, after: int) -> Pulled | Finished | None:
        """One pull; None when the server says to ask again."""
        if self._over is not None:
            return self._over
        request = ps_pb2.PullRequest(
            run_id=self._contract.run_id,
            after=after if self._again is None else min(after, self._again),
            chunk_bytes=self._incoming.chunk_bytes,
            have=self._incoming.have if self.terms.fragments > 1 else b"",
        )
        receive = self._receive_inline if self._in_one_message else self._receive_stream
        first, parameters = await receive(request.SerializeToString())
        if first.HasField("finished"):
            return Finished(escape(first.finished.reason, SENTENCE_LIMIT))
        if parameters is None:
            return None
        self._newest, self._again = first.manifest.round, None
        return Pulled(first.manifest.round, parameters, self._trace_parent)

    async def _receive_stream(self, request: bytes) -> tuple[ps_pb2.PullReply, Tensor | None]:
        begin = partial(self._connection.calls.pull, request)
        async with (
            self._connection.calling(begin, self._identity) as (call, leased),
            idle_timeout(self._idle) as timer,
        ):
            data = await message(call, timer)
            await self._look_for_trace(call)
            first = decode_message(ps_pb2.PullReply, data or b"", MANIFEST_LIMIT)
            if data is None or (sent := self._sent(first)) is None:
                return first, None
            given = (call, self.name, first.manifest, timer, leased)
            return first, await self._incoming.receive(*given, sent.slices)

    async def _receive_inline(self, request: bytes) -> tuple[ps_pb2.PullReply, Tensor | None]:
        try:
            async with asyncio.timeout(self._idle):
                call = self._connection.calls.pull_inline(request, metadata=self._metadata)
                data: bytes = await call
                await self._look_for_trace(call)
        except grpc.aio.AioRpcError as error:
            if (failed := FailedCall.of(error)).status is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            # Another server than the one that was joined: it will say so in words that it knows.
            self._inline = False
            raise TransientError(failed) from None
        first = decode_message(ps_pb2.PullReply, data, MANIFEST_LIMIT + self._contract.size)
        sent = self._sent(first)
        return first, None if sent is None else self._incoming.inline(first, sent.slices)

    async def _look_for_trace(self, call: Any) -> None:
        """Keep what a call that was answered says of the span of its round."""
        if self.traced:
            found = [value for key, value in await call.initial_metadata() or () if key == TRACE_PARENT]
            self._trace_parent = found[0] if found and isinstance(found[0], str) else ""

    @property
    def _in_one_message(self) -> bool:
        return self._inline and self._now() >= self._inline_from

    def _sent(self, first: ps_pb2.PullReply) -> Contract | None:
        """What is sent after this message, or with it; None where it is not the beginning of a model.

        Raises:
            Refused: it is that of another one, or changes that were not asked for.
        """
        if first.HasField("finished") or first.HasField("again"):
            return None
        contract, round = self._contract, first.manifest.round
        if first.HasField("since"):
            if not self._incoming.have:
                raise Refused(Refusal.MALFORMED, f"Found changes since round {first.since}, of nothing.")
            contract = contract.of_changes(first.since, round)
        contract.check(first.manifest)
        check_round(round)
        return contract

    async def _exchange(self, begin: Callable[..., Any], request: bytes) -> bytes:
        """A message in each direction.

        Raises:
            TimeoutError: nothing came for as long as the other end may be silent.
        """
        async with asyncio.timeout(self._idle):
            reply: bytes = await begin(request, metadata=self._metadata)
            return reply

    async def _decline(self, round: int, reason: str) -> None:
        request = ps_pb2.DeclineRequest(run_id=self._contract.run_id, round=round, reason=reason[:REASON])
        try:
            data = await self._connection.calls.decline(
                request.SerializeToString(), metadata=self._identity, timeout=self._idle
            )
        except grpc.aio.AioRpcError as error:
            failed = FailedCall.of(error)
            # The round is over, or does without this worker for another reason; or the server is older.
            if (
                failed.reaction is not Reaction.NEXT_MODEL
                and failed.status is not grpc.StatusCode.UNIMPLEMENTED
            ):
                raise
        else:
            decode_message(ps_pb2.DeclineReply, data, MANIFEST_LIMIT)

    async def _push(self, round: int, outgoing: Outgoing) -> Receipt:
        contract = self._contract.of_push(round)
        if outgoing.encoding != contract.encoding:
            sent = outgoing.encoding
            contract = replace(contract, dtype=sent.dtype, exact=sent.exact)
        try:
            if self._in_one_message:
                inline = outgoing.inline(contract, round)
                data = await self._exchange(self._connection.calls.push_inline, inline)
                reply = decode_message(ps_pb2.PushReply, data, MANIFEST_LIMIT)
            else:
                reply = await self._send(contract.manifest(round, outgoing.digest), outgoing)
        except grpc.aio.AioRpcError as error:
            failed = FailedCall.of(error)
            if failed.reaction is not Reaction.NEXT_MODEL:
                raise
            return Receipt(False, failed.code, failed.sentence, failed.round)
        if not reply.HasField("weight"):
            return Receipt(True, round=reply.round)
        return Receipt(True, round=reply.round, weight=reply.weight, weight_round=reply.weight_round)

    async def _send(self, manifest: ps_pb2.Manifest, outgoing: Outgoing) -> ps_pb2.PushReply:
        async with self._connection.calling(self._connection.calls.push, self._identity) as (call, leased):
            return await upload(call, self.name, manifest, outgoing, self._pace, self._idle, leased)


def _name_is_taken(passing: TransientError) -> bool:
    """Whether another process has the name."""
    (cause,) = passing.args
    return isinstance(cause, FailedCall) and cause.refusal is Refusal.SESSION_TAKEN

"""A worker of the run that makes its calls as it should, and does with the lane beside them as it likes."""

import contextlib
import itertools
import socket
import struct
import time
from dataclasses import replace

import torch
from tests.extent import patience
from tests.hostile.attacks import Traitor
from tests.hostile.http2 import HungUp
from tests.protos.data_channel.book import Book, encrypted_size

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET
from varangian.protos.data_channel.encrypted_stream import KEY
from varangian.protos.payloads.chunks import encode_chunk
from varangian.protos.payloads.encoding import encode_vector, payload_digest

GOOD, BAD = 1.5, 99.0
"""What a rogue pushes when it should count: between what honest workers push; and when it should not."""
PASSING = ("BUSY", "STREAMS", "PULLS", "UPLOADS", "STALE", "REPEATED", "FAULTY")
"""What is over once the server has noticed the end of another call, or the others have closed the round."""

BUSY = ("IDLE", "STALE")
"""Where the machine or the rogue was slow: for a second, or until the others had closed the round."""


class Shown(bytes):
    """A ticket. What is added to that of a push is encrypted with its key, if it has one, up to its size.

    Less than a payload is encrypted as if the rest were to come, and then cut.
    """

    def __new__(cls, told, size, transfer):
        made = super().__new__(cls, told[:TICKET])
        made.key, made.size, made.transfer = told[TICKET:], size, transfer
        return made

    def __add__(self, data):
        if not (self.key and self.transfer):  # in clear text, or of a pull: nothing belongs behind it
            return bytes(self) + data
        sealed = b"".join(self.records(data[: self.size].ljust(self.size, b"\0")))
        return bytes(self) + (sealed[: len(data)] if len(data) < self.size else sealed + data[self.size :])

    def records(self, data, **changes):
        """Segments as they should be, but for these changes of what they are said to be."""
        return Book(self.key, replace(self.transfer, **changes).associated()).segments(data)

    def taken(self, line):
        """What comes on a line for a payload; None when the line ended before all of it had come."""
        size = encrypted_size(self.size) if self.key else self.size
        data = received(line, size)
        return None if len(data) < size else data

    def opened(self, data, manifest, worker):
        """The payload of a pull."""
        if not self.key:
            return data
        transfer = AssociatedData.of("pull", manifest, worker, self.size)
        return bytearray(Book(self.key, transfer.associated()).decrypted(bytes(data)))


class Rogue(Traitor):
    """Joined, on a connection of its own; its lines close with it."""

    def __init__(self, siege, name=None):
        self.stack = contextlib.ExitStack()
        super().__init__(siege, name)
        self.port = self.joined.data_port
        assert self.port, "the server has a lane"

    def __exit__(self, *error):
        self.stack.close()
        super().__exit__(*error)

    def dial(self, room=None):
        """A line on the lane."""
        return self.stack.enter_context(self.siege.dial(self.name, self.port, room))

    def payload(self, value):
        """A vector, as long as it should be, of this number."""
        return bytes(encode_vector(torch.full((self.siege.numel,), value)))

    def offers(self, digest=b"", lane=True):
        """A push that begins, now or when nothing is in its way any more: its stream, and its ticket."""
        return self._begins("Push", lambda: self.manifest(digest), lane)

    def wants(self, after=-1):
        """The same for a pull."""
        request = ps_pb2.PullRequest(run_id=self.joined.run_id, after=after).SerializeToString()
        return self._begins("Pull", lambda: request, True)

    def _begins(self, method, message, lane):
        asks = ((metadata_keys.DATA_CHANNEL, "1"),) if lane else ()
        for _ in range(200):
            stream = self.line.call(method, (*self.identity, *asks))
            said = message()
            self.line.message(stream, said, end=method == "Pull")
            if ready := self._headers(stream).get(metadata_keys.READY):
                told = TICKET + KEY * bool(self.siege.certs)
                assert len(ready) == (2 * told if lane else 1), ready
                return stream, self._shown(ready, method, said) if lane else None
            found = self.end(stream)
            assert found.get(metadata_keys.CODE) in PASSING, found
            time.sleep(0.05)
        raise AssertionError(found)

    def _shown(self, ready, method, said):
        size, transfer = 4 * self.siege.numel, None
        if method == "Push":
            manifest = ps_pb2.PushRequest.FromString(said).manifest
            transfer = AssociatedData.of("push", manifest, self.name, size)
        return Shown(bytes.fromhex(ready), size, transfer)

    def _headers(self, stream):
        """The first ones, which are the only ones when the call was refused."""
        while True:
            for event in self.line.events:
                if getattr(event, "stream_id", None) == stream and hasattr(event, "headers"):
                    return dict(event.headers)
            if self.line.ended(stream):
                return {}
            self.line.listen(1)

    def seal(self, stream, digest):
        message = ps_pb2.PushRequest(seal=ps_pb2.Seal(content_digest=digest)).SerializeToString()
        with contextlib.suppress(HungUp):  # the call may have been refused meanwhile
            self.line.message(stream, message, end=True)

    def end(self, stream):
        """What became of a call."""
        return self.line.answer(stream)

    def code(self, stream):
        """The code of its refusal; empty when it was none."""
        found = self.end(stream)
        return "" if found.get("grpc-status") == "0" else found.get(metadata_keys.CODE, str(found))

    def cancel(self, stream):
        with contextlib.suppress(HungUp):
            self.line.http.reset_stream(stream, 8)
            self.line.flush()

    # as it should be

    def gives(self, data, cuts=(), pauses=(0,)):
        """A whole push on the lane, in these segments; the code of its refusal, if there is one."""
        found, waits = "IDLE", itertools.cycle(pauses)
        while found in BUSY:
            stream, ticket = self.offers()
            line, said = self.dial(), ticket + data
            for at, end in itertools.pairwise(sorted({0, *cuts, len(said)})):
                if not sent(line, said[at:end]):
                    break
                time.sleep(next(waits) / 1000)
            self.seal(stream, payload_digest(data))
            found = self.code(stream)
        return found

    def gives_chunks(self, data, cuts=()):
        """The same over gRPC."""
        found = "IDLE"
        while found in BUSY:
            stream, _ = self.offers(lane=False)
            with contextlib.suppress(HungUp):
                for at, end in itertools.pairwise(
                    sorted({*range(0, len(data), 1 << 20), *cuts, len(data)})
                ):
                    self.line.message(stream, encode_chunk(at, data[at:end]))
            self.seal(stream, payload_digest(data))
            found = self.code(stream)
        return found

    def takes(self, after=-1):
        """A whole pull on the lane: its vector, which is the one that was promised.

        When the others close the round meanwhile, the server ends the payload and says to ask again.
        """
        while True:
            line = self.dial()
            stream, ticket = self.wants(after)
            assert sent(line, ticket)
            data = ticket.taken(line)
            code = self.code(stream)
            promised, *more = self._replies(stream)
            if not (code in BUSY or any(reply.HasField("again") for reply in more)):
                break
        assert (code, data is None) == ("", False)
        data = ticket.opened(data, promised.manifest, self.name)
        assert payload_digest(data) == promised.manifest.content_digest
        return torch.frombuffer(data, dtype=torch.float32)

    def _replies(self, stream):
        events = (event for event in self.line.events if getattr(event, "stream_id", None) == stream)
        data = b"".join(event.data for event in events if hasattr(event, "data"))
        while data:
            _, length = struct.unpack(">BI", data[:5])
            yield ps_pb2.PullReply.FromString(data[5 : 5 + length])
            data = data[5 + length :]

    def works(self):
        """What is true of a worker of the run after whatever it has done: it takes part again."""
        assert self.gives(self.payload(GOOD)) == ""
        found = self.takes()
        assert torch.isfinite(found).all()
        # All push one number many times over: a row that was torn would show.
        torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-5, atol=1e-5)


def sent(line, data):
    """Send as much as the other end takes; whether that was all."""
    line.settimeout(patience(10))
    try:
        line.sendall(data)
    except OSError:
        return False
    return True


def received(line, size):
    """So many bytes, or those before the end."""
    data = bytearray()
    with contextlib.suppress(OSError):
        while len(data) < size and (more := line.recv(min(1 << 18, size - len(data)))):
            data += more
    return data


def hung_up(line, limit=20.0):
    """Whether the other end closes the connection in time; it has nothing more to say."""
    line.settimeout(patience(limit))
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def reset(line):
    """Hang up without a word of TCP's good manners."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()

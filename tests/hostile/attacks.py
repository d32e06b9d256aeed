"""Attacks of peers on a server that means them no harm. Each attack lets go of everything when it is over.

`size` scales how much of it there is; 1 is what fits into a test.
"""

import contextlib
import gzip
import random
import secrets
import socket
import time

from tests.extent import patience
from tests.hostile.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    HungUp,
    Line,
    frame,
)
from tests.hostile.siege import MIB, RUN, TRAITOR

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.messages import MESSAGE_LIMIT, PROTOCOL


def identity(siege, name=None, session=None):
    name = name or TRAITOR  # asked for now: a benchmark has another one
    return (
        (metadata_keys.WORKER, name),
        (metadata_keys.TOKEN, siege.token(name)),
        (metadata_keys.SESSION, session or secrets.token_hex(16)),
    )


class Traitor:
    """A worker of the run on a connection of its own, who has joined."""

    def __init__(self, siege, name=None):
        self.siege = siege
        self.name = name or TRAITOR
        self.line = Line(siege, self.name)
        self.identity = identity(siege, self.name, session="7a" * 16)
        try:
            self._join()
        except BaseException:
            self.line.close()
            raise

    def _join(self):
        request = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=self.siege.layout.text)
        for _ in range(60):
            stream = self.line.call("Join", self.identity)
            self.line.message(stream, request.SerializeToString(), end=True)
            joined = self.line.answer(stream)
            # Attacks follow each other faster than one worker may join. And on a busy machine this session
            # can be silent for so long that an attack takes its name over, until that one is silent too.
            if joined.get("varangian-code") not in ("JOINS", "SESSION_TAKEN"):
                break
            time.sleep(0.5)
        assert joined.get("grpc-status") == "0", joined
        self.joined = ps_pb2.JoinReply.FromString(body(self.line, stream))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.close()

    def manifest(self, digest=bytes(16), **changes):
        contract = Contract(RUN, self.siege.layout)
        manifest = contract.manifest(self.round(), digest)
        for name, value in changes.items():
            setattr(manifest, name, value)
        return ps_pb2.PushRequest(manifest=manifest).SerializeToString()

    def round(self):
        stream = self.line.call("Status")
        self.line.message(stream, b"", end=True)
        return int(_status_reply(self.line, stream).round)

    def push(self, *messages, end=True):
        """Open a push with these messages; its stream."""
        stream = self.line.call("Push", self.identity)
        for i, message in enumerate(messages):
            self.line.message(stream, message, end=end and i == len(messages) - 1)
        return stream


def _status_reply(line, stream):
    line.answer(stream)
    return ps_pb2.StatusReply.FromString(body(line, stream))


def body(line, stream):
    """What has come on a stream, as one message."""
    events = (event for event in line.events if getattr(event, "stream_id", None) == stream)
    return b"".join(event.data for event in events if hasattr(event, "data"))[5:]


def random_bytes(siege, size=1):
    """No HTTP/2 at all: from nothing to 64 KiB of noise, with and without a preface before it."""
    noise = random.Random(1)
    for i in range(30 * size):
        with socket.create_connection((siege.host, siege.port), 5) as line, contextlib.suppress(OSError):
            line.sendall(PREFACE * (i % 2) + noise.randbytes(noise.randrange(1 << 16)))


def half_open(siege, size=1):
    """Connections that say nothing, or stop in the middle of a word."""
    beginnings = (b"", PREFACE[:10], PREFACE, PREFACE + frame(SETTINGS, 0, 0)[:5])
    with contextlib.ExitStack() as stack:
        for i in range(100 * size):
            line = stack.enter_context(socket.create_connection((siege.host, siege.port), 5))
            line.sendall(beginnings[i % len(beginnings)])
        yield


def ping_flood(siege, size=1):
    _frames(siege, [frame(PING, 0, 0, bytes(8))] * 20_000 * size)


def settings_flood(siege, size=1):
    """Each wants an answer, and changes what all streams may do."""
    flood = (frame(SETTINGS, 0, 0, b"\0\x04" + (i % 2 * 65535).to_bytes(4, "big")) for i in range(20_000))
    _frames(siege, list(flood) * size)


def window_flood(siege, size=1):
    _frames(siege, [frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big"))] * 20_000 * size)


def priority_flood(siege, size=1):
    flood = (frame(PRIORITY, 0, 2 * i + 1, (2 * i + 3).to_bytes(4, "big") + b"\1") for i in range(20_000))
    _frames(siege, list(flood) * size)


def empty_data_flood(siege, size=1):
    """Frames without a byte, on a stream that stays open."""
    with Traitor(siege) as traitor, contextlib.suppress(HungUp):
        stream = traitor.push(traitor.manifest(), end=False)
        _pour(traitor.line, [frame(DATA, 0, stream)] * 20_000 * size)


def rapid_reset(siege, size=1):
    """CVE-2023-44487: open a stream and take it back at once, many times a packet."""
    with Line(siege) as line, contextlib.suppress(HungUp):
        line.listen(1)
        line.listen(0.2)
        for _ in range(40 * size):
            burst = b""
            for _ in range(100):
                stream = line.http.get_next_available_stream_id()
                block = line.http.encoder.encode(line.headers("Join"))
                line.http.highest_outbound_stream_id = stream
                burst += frame(HEADERS, END_HEADERS, stream, block)
                burst += frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
            line.raw(burst)


def continuation_flood(siege, size=1):
    """Headers that never end."""
    with Line(siege) as line, contextlib.suppress(HungUp):
        line.listen(1)
        block = line.http.encoder.encode(line.headers("Status"))
        line.raw(frame(HEADERS, 0, 1, block))
        piece = b"\0\x01a" + b"\x7f\x81\x7d" + b"b" * 16_000  # a literal that is not kept in the table
        _pour(line, [frame(CONTINUATION, 0, 1, piece)] * 2_000 * size)


def header_floods(siege, size=1):
    """Many headers, and large ones: refused from the moment that the server's settings are known."""
    many = [(f"x-{i}", "y" * 20) for i in range(2_000)]
    large = [("x-large", "y" * 15_000)] * 20
    for more in (many, large) * size:
        for settled in (False, True):
            with Line(siege) as line, contextlib.suppress(HungUp):
                while settled and not line.events:
                    line.listen(1)
                stream = line.call("Status", more)
                line.message(stream, b"", end=True)
                status = line.answer(stream).get("grpc-status")
                assert status != "0" or not settled


def nonsense_headers(siege, size=1):
    """Metadata that is no text, as large as it may be."""
    for _ in range(20 * size):
        with Line(siege) as line, contextlib.suppress(HungUp):
            line.listen(1)
            block = line.http.encoder.encode(line.headers("Status"))
            value = b"\x00\x01a" + b"\x7f\x81\x7d" + b"\x80" * 16_000
            line.raw(frame(HEADERS, END_HEADERS | 1, 1, block + value[:16_000]))
            line.raw(frame(HEADERS, END_HEADERS | 1, 3, block + b"\x00\x01a\x04\xff\xfe\x80\x81"))
            line.listen(0.2)


def hanging_up(siege, size=1):
    """Questions whose answers nobody waits for."""
    layout = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=siege.layout.text).SerializeToString()
    for i in range(100 * size):
        with Line(siege) as line, contextlib.suppress(HungUp):
            stream = line.call(("Join", "Status")[i % 2], identity(siege))
            line.message(stream, layout if i % 2 == 0 else b"", end=True)


def table_bomb(siege, size=1):
    """HPACK: one large header in the table, and then thousands of one-byte references to it."""
    for _ in range(10 * size):
        with Line(siege) as line, contextlib.suppress(HungUp):
            line.listen(1)
            first = line.http.encoder.encode([*line.headers("Status"), ("x-bomb", "y" * 3_900)])
            line.raw(frame(HEADERS, END_HEADERS | 1, 1, first))
            line.raw(frame(HEADERS, END_HEADERS | 1, 3, first[:20] + b"\xbe" * 16_000))
            line.listen(0.5)


def compression_bombs(siege, size=1):
    """Half a gigabyte of zeros in half a megabyte."""
    bomb = gzip.compress(bytes(MIB), 9) * 500
    for encoding in ("gzip", "deflate", "br", "identity") * size:
        with Traitor(siege) as traitor:
            stream = traitor.line.call("Push", traitor.identity, headers=[("grpc-encoding", encoding)])
            assert not _taken(traitor.line, stream, bomb, compressed=True)


def amplification(siege, size=1):
    """Millions of empty parts in one message, where a parser makes an object of each."""
    for bomb in (b"\x0a\x00", b"\x12\x00", b"\x0a\x02\x12\x00", b"\x7a\x00", b"\x0b\x0c") * size:
        with Traitor(siege) as traitor:
            stream = traitor.push(traitor.manifest(), end=False)
            assert not _taken(traitor.line, stream, bomb * (MESSAGE_LIMIT // len(bomb)))


def oversize(siege, size=1):
    """More than a message may have, really and as a promise."""
    for length, body in ((9 * MIB, bytes(9 * MIB)), (0xFFFFFFFF, bytes(MIB)), (0x7FFFFFFF, b"")) * size:
        with Traitor(siege) as traitor:
            stream = traitor.push(traitor.manifest(), end=False)
            assert not _taken(traitor.line, stream, body, length=length)


def never_reading(siege, size=1):
    """Pulls on connections whose windows are not opened again: what is written has nowhere to go."""
    with contextlib.ExitStack() as stack:
        for _ in range(8 * size):
            traitor = stack.enter_context(Traitor(siege))
            traitor.line.reads = False
            for _ in range(8):
                stream = traitor.line.call("Pull", traitor.identity)
                request = ps_pb2.PullRequest(run_id=RUN, after=-1).SerializeToString()
                traitor.line.message(stream, request, end=True)
        yield


def slow_loris(siege, size=1):
    """200 calls at a byte now and then: pushes of a worker of the run, and messages of nobody."""
    with contextlib.ExitStack() as stack:
        open_streams = []
        traitor = stack.enter_context(Traitor(siege))
        with contextlib.suppress(HungUp):
            pushes = (traitor.push(traitor.manifest(), end=False) for _ in range(4))
            open_streams += [(traitor.line, stream) for stream in pushes]
        for i in range(13 * size):
            line = stack.enter_context(Line(siege))
            with contextlib.suppress(HungUp):
                for method in ("Join", "Status", "Pull") * 5:
                    stream = line.call(method, identity(siege) if i % 2 else ())
                    # The length of a message that is never complete: who calls is only asked after it.
                    line.raw(frame(DATA, 0, stream, (1000).to_bytes(5, "big")))
                    open_streams.append((line, stream))
        while True:
            for line, stream in open_streams:
                with contextlib.suppress(HungUp):
                    line.raw(frame(DATA, 0, stream, b"\0"))
            yield


def join_flood(siege, size=1):
    _calls(siege, "Join", ps_pb2.JoinRequest(protocol=PROTOCOL, layout="x" * 50_000), 300 * size)


def status_flood(siege, size=1):
    _calls(siege, "Status", ps_pb2.StatusRequest(), 500 * size)


def pull_flood(siege, size=1):
    """A small question with a large answer, by a worker of the run, who takes back most of them."""
    request = ps_pb2.PullRequest(run_id=RUN, after=-1).SerializeToString()
    with Traitor(siege) as traitor, contextlib.suppress(HungUp):
        for i in range(200 * size):
            stream = traitor.line.call("Pull", traitor.identity)
            traitor.line.message(stream, request, end=True)
            if i % 4:
                traitor.line.http.reset_stream(stream)
                traitor.line.flush()
            else:
                traitor.line.answer(stream, 1)


def random_messages(siege, count=60):
    """Noise and damaged messages to every call, from a worker of the run; each is answered."""
    noise = random.Random(2)
    join = ps_pb2.JoinRequest(protocol=PROTOCOL, layout=siege.layout.text).SerializeToString()
    pull = ps_pb2.PullRequest(run_id=RUN, after=2**40).SerializeToString()
    with Traitor(siege) as traitor:
        push = traitor.manifest()
        for i in range(count):
            method, message = (("Join", join), ("Pull", pull), ("Push", push), ("Status", b""))[i % 4]
            stream = traitor.line.call(method, traitor.identity)
            traitor.line.message(stream, _damaged(noise, message), end=True)
            answer = traitor.line.answer(stream)
            assert "grpc-status" in answer, answer
            traitor.line.events.clear()


def _damaged(noise, message):
    """A message with a part replaced by noise, or nothing but noise."""
    if noise.random() < 0.3:
        return noise.randbytes(noise.randrange(1, 500))
    at = noise.randrange(len(message) + 1)
    return message[:at] + noise.randbytes(noise.randrange(1, 8)) + message[at + noise.randrange(8) :]


ATTACKS = (
    random_bytes,
    half_open,
    ping_flood,
    settings_flood,
    window_flood,
    priority_flood,
    empty_data_flood,
    rapid_reset,
    continuation_flood,
    header_floods,
    nonsense_headers,
    hanging_up,
    table_bomb,
    compression_bombs,
    amplification,
    oversize,
    never_reading,
    slow_loris,
    join_flood,
    status_flood,
    pull_flood,
    random_messages,
)


def _taken(line, stream, message, **lies):
    """Whether a call with this message has succeeded."""
    try:
        line.message(stream, message, end=True, **lies)
        return line.answer(stream, 5).get("grpc-status") == "0"
    except HungUp:
        return False


def _calls(siege, method, request, count):
    """Calls as fast as they are answered, sixteen at a time, most of them by nobody."""
    data = request.SerializeToString()
    with Line(siege) as line, contextlib.suppress(HungUp):
        waiting = []
        for i in range(count):
            waiting.append(line.call(method, identity(siege) if i % 3 == 0 else ()))
            line.message(waiting[-1], data, end=True)
            if len(waiting) == 12:
                for stream in waiting:
                    line.answer(stream, 5)
                waiting.clear()
                line.events.clear()


def _frames(siege, frames):
    with Line(siege) as line, contextlib.suppress(HungUp):
        _pour(line, frames)


def _pour(line, frames):
    """Send it all, and take in what comes back, so that both ends keep going."""
    for at in range(0, len(frames), 500):
        line.raw(b"".join(frames[at : at + 500]))
        line.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            if not line.socket.recv(1 << 20):
                raise HungUp("closed")
        line.socket.settimeout(patience(10))
    time.sleep(0)

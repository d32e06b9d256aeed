"""A peer that speaks HTTP/2 by hand, well enough to be understood and badly enough to hurt."""

import contextlib
import struct
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from tests.extent import patience

PATH = "/varangian.v1.ParameterServer/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class HungUp(Exception):
    """The server has closed the connection, or asked for that."""


class Line:
    """One connection."""

    def __init__(self, siege, name="w02"):
        self.siege = siege
        self.reads = True
        """Whether the server may send more than 64 KiB."""
        self.socket = siege.dial(name)
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.http = h2.connection.H2Connection(config)
        self.http.initiate_connection()
        self.events = []
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def raw(self, data):
        """Bytes past the library."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise HungUp(str(error)) from None

    def flush(self):
        self.raw(self.http.data_to_send())

    def call(self, method, metadata=(), end=False, headers=()):
        """Open a stream; its number."""
        stream = self.http.get_next_available_stream_id()
        try:
            self.http.send_headers(stream, self.headers(method, metadata, headers), end_stream=end)
        except h2.exceptions.ProtocolError as error:
            raise HungUp(str(error)) from None
        self.flush()
        return stream

    def headers(self, method, metadata=(), more=()):
        return [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PATH + method),
            (":authority", self.siege.address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
            *more,
        ]

    def data(self, stream, data, end=False):
        """As much as the server lets in, and then it has to let in more."""
        while data or end:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if data and room <= 0:
                # Anything may come before there is room. A message in half would be waited for.
                if not self.listen(1.0) or self.ended(stream):
                    return False
                continue
            piece, data = data[:room], data[room:]
            try:
                self.http.send_data(stream, piece, end_stream=end and not data)
            except h2.exceptions.ProtocolError as error:
                raise HungUp(str(error)) from None
            self.flush()
            if not data:
                return True
        return True

    def message(self, stream, message, end=False, compressed=False, length=None):
        """A gRPC message, which may lie about its length."""
        head = struct.pack(">BI", compressed, len(message) if length is None else length)
        return self.data(stream, head + message, end)

    def listen(self, seconds):
        """Take in what comes within so many seconds; returns as soon as something has."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError as error:
            raise HungUp(str(error)) from None
        if not data:
            raise HungUp("closed")
        try:
            events = self.http.receive_data(data)
            self.events += events
            for event in events:
                if self.reads and isinstance(event, h2.events.DataReceived):
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except h2.exceptions.ProtocolError as error:
            raise HungUp(str(error)) from None
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.flush()
        return True

    def ended(self, stream):
        ends = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)
        return any(
            isinstance(event, ends) and getattr(event, "stream_id", stream) in (stream, None)
            for event in self.events
        )

    def answer(self, stream, limit=60.0):
        """What became of a call: its headers and trailers as one dictionary, or how it was cut off."""
        end = time.monotonic() + patience(limit)
        while not self.ended(stream) and time.monotonic() < end:
            try:
                self.listen(0.2)
            except HungUp as error:
                return {"hung up": str(error)}
        found = {}
        for event in self.events:
            if getattr(event, "stream_id", None) == stream and hasattr(event, "headers"):
                found |= dict(event.headers)
            if isinstance(event, h2.events.StreamReset) and event.stream_id == stream:
                found["reset"] = str(event.error_code)
            if isinstance(event, h2.events.ConnectionTerminated):
                found["goaway"] = str(event.error_code)
        return found


def frame(kind, flags, stream, body=b""):
    """Any frame at all."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_HEADERS = 4

"""TLS through memory: what arrives, what fails, and what a certified peer can do to waste our time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import random
import socket
import ssl

import pytest

from varangian.protos import secured as module
from varangian.protos.bundle import Role, contexts
from varangian.protos.secured import Secured

WAITING = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
HOST = "ps.test"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    pytest.importorskip("cryptography")
    from varangian.server.authority import Authority

    path = tmp_path_factory.mktemp("secured")
    for whose in ("ours", "theirs"):
        authority = Authority.create(path / whose, days=1)
        authority.issue("server", Role.SERVER, hosts=[HOST], days=1)
        authority.issue("w00", Role.WORKER, days=1)
    return path


def server_context(bundles, whose="ours"):
    context = contexts(bundles / whose / "server")[0]
    context.verify_mode, context.num_tickets = ssl.CERT_REQUIRED, 0
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def client_context(bundles, whose="ours"):
    context = contexts(bundles / whose / "w00")[1]
    context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    return context


@pytest.fixture
def pair():
    """Two connected sockets that take only a little at a time."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield ends
    for end in ends:
        end.close()


def made(bundles, pair, whose="ours", host=HOST):
    client = Secured(client_context(bundles, whose), pair[0], host)
    return client, Secured(server_context(bundles), pair[1])


def together(*steps):
    """Run each until it no longer waits for the others; what they returned."""
    found, left = {}, dict(enumerate(steps))
    for _ in range(100_000):
        for number, step in [*left.items()]:
            try:
                found[number] = step()
            except WAITING:
                continue
            del left[number]
        if not left:
            return [found[number] for number in range(len(steps))]
    raise AssertionError("They wait for each other.")


def shaken(ends):
    together(*(end.do_handshake for end in ends))
    return ends


def sending(end, data):
    rest = memoryview(data)

    def step():
        nonlocal rest
        while rest:
            rest = rest[end.send(rest) :]

    return step


def receiving(end, size, most=1 << 20):
    found, memory = bytearray(), memoryview(bytearray(most))

    def step():
        while len(found) < size:
            count = end.recv_into(memory[: size - len(found)])
            found.extend(memory[:count])
            if not count:
                break
        return bytes(found)

    return step


@pytest.mark.parametrize("size", [1, 16, 16_384, 16_385, 3_000_001])
@pytest.mark.parametrize("most", [7, 1 << 20])
def test_everything_arrives_through_sockets_that_take_a_little(bundles, pair, size, most):
    client, server = shaken(made(bundles, pair))
    size = min(size, 20_000 * most)
    data = random.Random(size).randbytes(size)
    assert together(sending(client, data), receiving(server, size, most))[1] == data
    assert together(sending(server, data), receiving(client, size, most))[1] == data


def test_both_ways_at_once(bundles, pair):
    client, server = shaken(made(bundles, pair))
    up, down = (random.Random(seed).randbytes(300_000) for seed in (1, 2))
    done = together(
        sending(client, up), sending(server, down), receiving(server, 300_000), receiving(client, 300_000)
    )
    assert done[2:] == [up, down]


def test_small_messages_that_came_together_are_read_one_by_one(bundles, pair):
    client, server = shaken(made(bundles, pair))
    for word in (b"one", b"two", b"six"):
        client.send(word)
    assert [together(receiving(server, 3))[0] for _ in range(3)] == [b"one", b"two", b"six"]


def test_who_is_there_is_known_as_grpc_tells_it(bundles, pair):
    client, server = shaken(made(bundles, pair))
    assert server.peer["x509_subject_alternative_name"] == [b"varangian:worker:w00"]
    assert b"varangian:server:server" in client.peer["x509_subject_alternative_name"]
    assert server.peer["ssl_tls_version"] == [b"TLSv1.3"]


@pytest.mark.parametrize(("whose", "host"), [("ours", "other.test"), ("theirs", HOST)])
def test_a_client_trusts_nobody_else(bundles, pair, whose, host):
    ends = made(bundles, pair, whose, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(ends)
    with pytest.raises(ssl.SSLError):  # and says so
        together(ends[1].do_handshake)


def test_a_server_says_what_it_has_against_a_certificate(bundles, pair):
    client, server = made(bundles, pair)
    client = Secured(_careless(client_context(bundles, "theirs")), pair[0], HOST)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken((client, server))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        together(receiving(client, 1))


def _careless(context):
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
def test_what_is_no_handshake_or_half_of_one_ends(bundles, pair, said):
    server = Secured(server_context(bundles), pair[1])
    pair[0].send(said)
    pair[0].close()
    with pytest.raises(ssl.SSLError):
        together(server.do_handshake)


def test_the_end_of_a_connection_is_its_end_in_the_middle_of_a_record_too(bundles, pair):
    client, server = shaken(made(bundles, pair))
    client.send(b"whole")
    client._tls.write(bytes(1000))
    pair[0].send(client._out.read()[:500])
    pair[0].close()
    assert together(receiving(server, 10_000)) == [b"whole"]
    assert server.recv_into(memoryview(bytearray(10))) == 0


def test_a_farewell_of_tls_is_the_end_when_the_connection_ends(bundles, pair):
    client, server = shaken(made(bundles, pair))
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.unwrap()
    client._flush()
    with pytest.raises(ssl.SSLWantReadError):
        server.recv_into(memoryview(bytearray(10)))
    pair[0].close()
    assert server.recv_into(memoryview(bytearray(10))) == 0


class Rekeyed:
    """A client that has shaken hands, and from now on makes its records by hand.

    Each is a message that says: from now on another key (RFC 8446, 4.6.3). TLS 1.3 allows any number.
    """

    def __init__(self, log):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM
        words = [line.split() for line in log.read_text().splitlines()]
        (secret,) = [word[2] for word in words if word[0] == "CLIENT_TRAFFIC_SECRET_0"]
        self._secret = bytes.fromhex(secret)

    def record(self, asks):
        inner = bytes([24, 0, 0, 1, asks, 22])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        sealed = self._cipher(self._expanded(b"key", 32)).encrypt(self._expanded(b"iv", 12), inner, head)
        self._secret = self._expanded(b"traffic upd", 48)
        return head + sealed

    def _expanded(self, label, size):
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(self._secret, info + b"\1", hashlib.sha384)[:size]


@pytest.mark.parametrize("asks", [0, 1])
@pytest.mark.parametrize("size", [16, 1 << 20])
def test_who_changes_keys_without_end_is_hung_up_on(bundles, tmp_path, asks, size):
    context = client_context(bundles)
    context.keylog_filename = str(tmp_path / "keys")
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    client, server = shaken((Secured(context, ends[0], HOST), Secured(server_context(bundles), ends[1])))
    assert client._tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
    peer, memory = Rekeyed(tmp_path / "keys"), memoryview(bytearray(size))
    sent, rest = 0, b""

    def flood():
        nonlocal sent, rest
        while sent < 1 << 20:
            with contextlib.suppress(BlockingIOError):
                rest = rest or b"".join(peer.record(asks) for _ in range(40))
                count = ends[0].send(rest)
                sent, rest = sent + count, rest[count:]
            with contextlib.suppress(ssl.SSLWantReadError):
                server.recv_into(memory)

    with pytest.raises(ssl.SSLError, match="carries nothing"):
        flood()
    assert sent <= 2 * module.EMPTY
    assert server._out.pending + len(server._rest) <= 2 * module.EMPTY
    for end in ends:
        end.close()


def test_one_new_key_is_nothing_to_hang_up_for(bundles, tmp_path):
    context = client_context(bundles)
    context.keylog_filename = str(tmp_path / "keys")
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    _, server = shaken((Secured(context, ends[0], HOST), Secured(server_context(bundles), ends[1])))
    ends[0].send(Rekeyed(tmp_path / "keys").record(1))
    with pytest.raises(ssl.SSLWantReadError):
        server.recv_into(memoryview(bytearray(16)))
    for end in ends:
        end.close()


def test_a_handshake_has_only_so_many_bytes(bundles, pair):
    class Endless:
        def recv_into(self, memory):
            return len(memory)

        def send(self, data):
            return len(data)

    server = Secured(server_context(bundles), Endless())

    class Patient:
        """OpenSSL has bounds of its own; here it has none."""

        def do_handshake(self):
            server._in.read()
            raise ssl.SSLWantReadError

    server._tls = Patient()
    with pytest.raises(ssl.SSLError, match="carries nothing"):
        server.do_handshake()

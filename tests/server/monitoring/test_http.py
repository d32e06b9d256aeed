"""The metrics port under friendly and hostile callers: real sockets, real TLS."""

import asyncio
import os
import ssl
from dataclasses import replace

import pytest
from tests.extent import patience

from varangian.protos.identity.bundle import CA, CERTIFICATE, KEY, REVOKED
from varangian.protos.identity.certificate import fingerprint_and_end
from varangian.server.identity.tls import Security
from varangian.server.monitoring.access import TokenError, read_token
from varangian.server.monitoring.http import HTTP_LIMITS, Answer
from varangian.server.monitoring.monitoring import Monitoring

TOKEN = b"0123456789abcdef"
QUICK = replace(HTTP_LIMITS, connecting=1e4, requests=1e4)
"""For tests of anything but the rates."""
STATE = b'{"run":"x"}'


class Port:
    """The port of a test, and a client that says what it wants."""

    def __init__(self, host="127.0.0.1", **settings):
        self.urls = []
        self.monitoring = Monitoring(host, 0, announce=self.urls.append, **{"limits": QUICK, **settings})
        self.monitoring.show(lambda: STATE)
        self.monitoring.add("/metrics", lambda: Answer(b"varangian_round 1\n"))
        self.context = None

    async def __aenter__(self):
        self._opened = self.monitoring.listening()
        await self._opened.__aenter__()
        self.monitoring.announce()
        self.number = int(self.urls[0].rstrip("/").rpartition(":")[2])
        return self

    async def __aexit__(self, *error):
        await self._opened.__aexit__(*error)

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.number, ssl=self.context)

    async def raw(self, data):
        """What comes back for these bytes, until the other end closes or has said all."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            await writer.drain()
            return await self.answer(reader)
        finally:
            writer.close()

    async def answer(self, reader):
        async with asyncio.timeout(patience(20)):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.startswith(b"Content-Length")
                ),
                0,
            )
            bare = head.startswith(b"HTTP/1.1 304")
            body = b"" if bare else await reader.readexactly(length)
        return int(head[9:12]), head.decode(), body

    async def get(self, path, *, host="localhost", method="GET", **headers):
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return await self.raw("\r\n".join([*lines, "", ""]).encode())


async def test_the_paths_that_there_are():
    async with Port() as port:
        assert (await port.get("/healthz"))[::2] == (200, b"ok\n")
        assert (await port.get("/state.json"))[::2] == (200, STATE)
        assert (await port.get("/state.json?x=1"))[0] == 200
        assert (await port.get("/metrics"))[2] == b"varangian_round 1\n"
        code, head, page = await port.get("/")
        assert (code, b"<title>Varangian</title>" in page) == (200, True)
        assert "default-src 'none'" in head
        assert "X-Content-Type-Options: nosniff" in head
        for asset in ("/page.css", "/page.js", "/icon.svg"):
            assert (await port.get(asset))[0] == 200
        assert (await port.get("/access"))[2] == b"open\n"


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//page.css",
        "/page.css/..",
        "/assets/page.css",
        "*",
        "/x",
    ],
)
async def test_no_other_file_can_be_read(path):
    async with Port() as port:
        assert (await port.get(path))[0] == 404


async def test_nothing_but_reading():
    async with Port() as port:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
            assert (await port.get("/state.json", method=method))[0] == 405
        code, head, body = await port.get("/state.json", method="GET", If_None_Match="")
        assert (code, body) == (200, STATE)
        reader, writer = await port.connect()
        writer.write(b"HEAD /state.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"Content-Length: {len(STATE)}".encode() in head
        writer.close()


async def test_what_has_not_changed_is_not_sent_again():
    async with Port() as port:
        _, head, _ = await port.get("/state.json")
        tag = next(line.partition(": ")[2] for line in head.splitlines() if line.startswith("ETag"))
        code, _, body = await port.get("/state.json", If_None_Match=tag)
        assert (code, body) == (304, b"")


async def test_one_connection_asks_many_times():
    async with Port() as port:
        reader, writer = await port.connect()
        for _ in range(20):
            writer.write(b"GET /state.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await port.answer(reader))[::2] == (200, STATE)
        writer.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, 431),
        (b"GET /" + b"x" * 100_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(3000)), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 200),
    ],
)
async def test_a_bad_request_is_answered_and_the_connection_closed(data, code):
    async with Port() as port:
        reader, writer = await port.connect()
        writer.write(data)
        try:
            assert (await port.answer(reader))[0] == code
            async with asyncio.timeout(patience(20)):
                assert await reader.read() == b""
        except ConnectionError:  # it closes while there is more to read
            assert code == 431
        writer.close()
        assert (await port.get("/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("LOCALHOST:9100", 200),
        ("127.0.0.1:9100", 200),
        ("[::1]:9100", 200),
        ("run.localhost", 200),
        ("evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
async def test_a_page_of_somebody_else_is_not_answered(host, code):
    """DNS rebinding: a browser that is sent here under the name of another site says so in Host."""
    async with Port() as port:
        assert (await port.get("/state.json", host=host))[0] == code


async def answered_once(port):
    """A connection that was answered; on a busy machine another one may have been let go before."""
    while True:
        reader, writer = await port.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            assert (await port.answer(reader))[0] == 200
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        else:
            return reader, writer


async def test_who_is_slow_is_let_go():
    limits = replace(QUICK, request=0.05, idle=0.05)
    async with Port(limits=limits) as port:
        silent = await port.connect()
        slow = await port.connect()
        slow[1].write(b"GET / HTTP/1.1\r\nHost: loc")
        idle = await answered_once(port)
        for reader, writer in (silent, slow, idle):
            async with asyncio.timeout(patience(20)):
                assert await reader.read() == b""
            writer.close()


async def test_a_crowd_keeps_nobody_out():
    """Connections that ask for nothing make room for the next one, oldest first."""
    limits = replace(QUICK, connections=8, connections_of_one=4)
    async with Port(limits=limits) as port:
        crowd = [await port.connect() for _ in range(30)]
        assert (await port.get("/healthz"))[0] == 200
        async with asyncio.timeout(patience(20)):
            for reader, _ in crowd[:20]:
                assert await reader.read() == b""
        for _, writer in crowd:
            writer.close()


async def test_rates_hold_callers_back_and_refuse_nobody():
    limits = replace(HTTP_LIMITS, connecting=200.0, requests=200.0, burst=0.01)
    async with Port(limits=limits) as port:
        answers = await asyncio.gather(*(port.get("/state.json") for _ in range(12)))
        assert [code for code, _, _ in answers] == [200] * 12


async def test_a_token_opens_what_is_private():
    async with Port(token=TOKEN) as port:
        for path in ("/state.json", "/metrics"):
            code, head, body = await port.get(path)
            assert (code, b"This needs the token of this server" in body) == (401, True)
            assert "WWW-Authenticate: Bearer" in head
            assert (await port.get(path, Authorization="Bearer 0123456789abcdeX"))[0] == 401
            assert (await port.get(path, Authorization="Basic MDEyMw=="))[0] == 401
            assert (await port.get(path, Authorization=f"Bearer {TOKEN.decode()}"))[0] == 200
        for path in ("/", "/page.js", "/healthz", "/access"):
            assert (await port.get(path))[0] == 200
        assert (await port.get("/access"))[2] == b"token\n"


def test_a_port_for_others_needs_a_token_or_certificates():
    with pytest.raises(ValueError, match="needs a token or certificates"):
        Monitoring("0.0.0.0", 0)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (b"short", 0o600, "Found 5 bytes"),
        (b"with a space in it......", 0o600, "without spaces"),
        (TOKEN, 0o644, "Found the mode 0644. chmod 600"),
        (TOKEN, 0o620, "Found the mode 0620"),
        (None, 0, "No such file"),
    ],
)
def test_the_file_of_a_token_is_checked(text, mode, said, tmp_path):
    path = tmp_path / "token"
    if text is not None:
        path.write_bytes(text)
        path.chmod(mode)
    with pytest.raises(TokenError, match=said) as found:
        read_token(path)
    assert str(path) in str(found.value)
    path.write_bytes(TOKEN + b"\n")
    for good in (0o400, 0o440, 0o600):
        os.chmod(path, good)
        assert read_token(path) == TOKEN


def client(bundles, name=None, authority="ours"):
    context = ssl.create_default_context(cafile=bundles / "ours/server" / CA)
    context.check_hostname = False
    if name is not None:
        folder = bundles / authority / name
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


async def test_an_operators_certificate_opens_it(bundles):
    security = Security(bundles / "ours/server")
    async with Port("0.0.0.0", security=security) as port:
        assert port.urls[0].startswith("https://")
        port.context = client(bundles, "alice")
        assert (await port.get("/state.json"))[0] == 200
        port.context = client(bundles, "w00")
        code, _, body = await port.get("/state.json")
        assert (code, b"the certificate of the worker 'w00'" in body) == (401, True)
        port.context = client(bundles)
        assert (await port.get("/state.json"))[0] == 401
        assert (await port.get("/healthz"))[0] == 200
        for wrong in (client(bundles, "w00", "theirs"), client(bundles, "expired")):
            port.context = wrong
            with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
                await port.get("/state.json")


async def test_without_tls_an_https_port_says_nothing(bundles):
    async with Port("0.0.0.0", security=Security(bundles / "ours/server")) as port:
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await port.get("/healthz")


async def test_a_revoked_operator_is_refused(bundles, copied):
    server = copied("ours/server")
    now = [0.0]
    security = Security(server, clock=lambda: now[0])
    fingerprint, _ = fingerprint_and_end((bundles / "ours/alice" / CERTIFICATE).read_bytes())
    async with Port("0.0.0.0", security=security, token=TOKEN) as port:
        port.context = client(bundles, "alice")
        assert (await port.get("/state.json"))[0] == 200
        (server / REVOKED).write_text(f"{fingerprint}\n")
        now[0] += 10
        security.look()
        assert (await port.get("/state.json"))[0] == 401
        port.context = client(bundles)
        assert (await port.get("/state.json", Authorization=f"Bearer {TOKEN.decode()}"))[0] == 200


async def test_the_port_stays_for_a_moment_where_somebody_follows_the_run():
    limits = replace(QUICK, followed=3600.0, farewell=3600.0)
    async with Port(limits=limits) as port:
        async with asyncio.timeout(patience(60)):
            await port.monitoring.farewell(asyncio.Event())  # nobody has asked
        await port.get("/state.json")
        staying = asyncio.create_task(port.monitoring.farewell(asyncio.Event()))
        for _ in range(3):
            await port.get("/state.json")
        assert not staying.done()
        staying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staying


async def test_who_reads_metrics_regularly_is_waited_for_once_more():
    limits = replace(QUICK, late=3000.0, scraped=3600.0, sent=0.0)
    async with Port(limits=limits) as port, asyncio.timeout(patience(120)):
        port.monitoring.expose(lambda: b"varangian_round 1\n", "text/plain")
        await port.get("/metrics")
        await port.monitoring.farewell(asyncio.Event())  # once is not regularly
        await port.get("/metrics")
        leaving = asyncio.create_task(port.monitoring.farewell(asyncio.Event()))
        await port.get("/healthz")
        assert not leaving.done()
        assert (await port.get("/metrics"))[0] == 200
        await leaving
        stop = asyncio.Event()
        leaving = asyncio.create_task(port.monitoring.farewell(stop))
        await port.get("/healthz")
        assert not leaving.done()
        stop.set()
        await leaving


async def test_who_reads_metrics_seldom_is_not_waited_for():
    limits = replace(QUICK, late=3000.0, scraped=1.0)
    async with Port(limits=limits) as port, asyncio.timeout(patience(60)):
        port.monitoring.expose(lambda: b"", "text/plain")
        await port.get("/metrics")
        await port.get("/metrics")
        await port.monitoring.farewell(asyncio.Event())

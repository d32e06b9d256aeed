"""Proxies that the environment names: calls go through one only where it was asked for."""

import asyncio
import contextlib
import pathlib
import re

import pytest
from tests.extent import patience
from tests.wire.kit import Run, all_worked

from varangian.cli.commands.doctor.command import Asked, examine
from varangian.cli.commands.health import status
from varangian.protos.network.dial import EXEMPTS, IGNORED, PROXY, find_exemption, find_proxy

NOBODY = "http://127.0.0.1:9"
"""A proxy that does not answer."""
ROOT = pathlib.Path(__file__).parents[2]


class Tunnel:
    """An HTTP proxy that connects everyone who asks to one target, whatever the name."""

    def __init__(self, target):
        self.host, _, self.port = target.rpartition(":")
        self.asked = []

    async def serve(self, reader, writer):
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).split()[:2])
        far_reader, far_writer = await asyncio.open_connection(self.host, int(self.port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(_copied(reader, far_writer), _copied(far_reader, writer))
        finally:
            far_writer.close()
            writer.close()


async def _copied(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.mark.parametrize("name", IGNORED)
async def test_a_run_on_this_machine_needs_no_proxy(name, monkeypatch):
    monkeypatch.setenv(name, NOBODY)
    monkeypatch.setenv(PROXY, NOBODY)
    monkeypatch.delenv("no_proxy", raising=False)
    found = {}
    run = Run(rounds=1)
    async with run.served() as address:
        found["round"] = (await asyncio.to_thread(status, address, patience(20))).round
        await all_worked(run, address)
        run.stop.set()
    assert found["round"] == 0


async def test_a_proxy_that_was_asked_for_leads_to_a_server_elsewhere(monkeypatch):
    run = Run(rounds=1)
    async with run.served() as address:
        tunnel = Tunnel(address)
        async with await asyncio.start_server(tunnel.serve, "127.0.0.1", 0) as server:
            monkeypatch.setenv(PROXY, "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname()))
            reply = await asyncio.to_thread(status, "server.example:50051", patience(20))
            assert (reply.round, tunnel.asked) == (0, [[b"CONNECT", b"server.example:50051"]])
        run.stop.set()


def test_doctor_names_the_variable(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", NOBODY)
    monkeypatch.delenv(PROXY, raising=False)
    lines = {finding.what: str(finding) for finding in examine(Asked("127.0.0.1:9", timeout=1))}
    assert lines["proxy"].startswith(f"NOTE    proxy         HTTPS_PROXY={NOBODY} has no effect")
    monkeypatch.setenv(PROXY, NOBODY)
    lines = {finding.what: finding for finding in examine(Asked("no-such-host.invalid:9", timeout=1))}
    assert lines["proxy"].sentence.startswith(f"calls go through {NOBODY}, as {PROXY} says")


@pytest.mark.parametrize(
    ("name", "entries", "host", "found"),
    [
        ("no_proxy", "localhost,.example", "ps.example", "no_proxy=.example"),
        ("no_proxy", "localhost, EXAMPLE", "ps.example", "no_proxy= EXAMPLE"),
        ("no_grpc_proxy", "10.0.0.0/8", "10.1.2.3", "no_grpc_proxy=10.0.0.0/8"),
        ("no_proxy", "10.0.0.0/8", "11.1.2.3", None),
        ("no_proxy", "*,", "ps.example", None),
        ("NO_PROXY", "ps.example", "ps.example", None),
    ],
)
def test_hosts_that_grpc_calls_directly(monkeypatch, name, entries, host, found):
    for each in (*EXEMPTS, "NO_PROXY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(PROXY, "http://127.0.0.1:9")
    monkeypatch.setenv(name, entries)
    assert find_exemption(host) == found
    assert find_proxy(f"{host}:9") == (None if found else "http://127.0.0.1:9")


def test_channels_are_opened_in_one_place():
    opened = re.compile(r"\b(in)?secure_channel\(")
    folders = ("protos", "server", "worker", "src/varangian/cli", "src/varangian/launch", "benchmarks")
    files = [path for folder in (*folders, "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [p.name for p in files if opened.search(p.read_text())] == ["dial.py"]

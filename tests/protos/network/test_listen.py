"""Where a server listens: on every address of its host, or not at all."""

import asyncio
import socket

import grpc.aio
import pytest

from varangian.protos.data_channel.listener import DataListener
from varangian.protos.network import listen
from varangian.protos.network.listen import ListenError, PortInUse, any_address, bind_sockets
from varangian.server.transport.grpc_server import bind

PAIR = ("127.0.0.1", "127.0.0.2")
NOT_HERE = "192.0.2.1"


@pytest.fixture
def named(monkeypatch):
    """A function that gives a name some addresses."""

    def named(name, *addresses):
        def found(host, port, **options):
            hosts = addresses if host == name else (host,)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

        monkeypatch.setattr(listen.socket, "getaddrinfo", found)

    return named


def closed(listeners):
    for listener in listeners:
        listener.close()
    return [listener for listener in listeners if listener.fileno() >= 0]


def places(listeners):
    return [listener.getsockname() for listener in listeners]


def test_every_address_of_a_name_has_the_same_port(named):
    named("pair", *PAIR)
    listeners = bind_sockets("pair", 0)
    port = listeners[0].getsockname()[1]
    assert places(listeners) == [(address, port) for address in PAIR]
    closed(listeners)
    again = bind_sockets("pair", port)
    assert places(again) == [(address, port) for address in PAIR]
    closed(again)


@pytest.mark.parametrize("taken", PAIR)
def test_one_address_that_is_taken_is_enough_to_refuse(named, taken):
    named("pair", *PAIR)
    with socket.create_server((taken, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUse, match=f"pair:{port} for itself"):
            bind_sockets("pair", port)
        with pytest.raises(PortInUse, match=r"set `server\.data_port` to another"):
            bind_sockets(taken, port, "server.data_port")

        async def served():
            with pytest.raises(PortInUse):
                bind(grpc.aio.server(), "pair", port)

        asyncio.run(served())


def test_an_address_that_is_not_here_is_left_out_unless_it_is_the_only_one(named):
    named("pair", NOT_HERE, PAIR[1])
    listeners = bind_sockets("pair", 0)
    assert [host for host, _ in places(listeners)] == [PAIR[1]]
    closed(listeners)
    named("away", NOT_HERE)
    with pytest.raises(ListenError, match="The system says"):
        bind_sockets("away", 0)


def test_payloads_are_taken_at_every_address(named):
    named("pair", *PAIR)

    async def run():
        lane = DataListener(2, False, print)
        port = lane.listen(bind_sockets("pair", 0))
        for address in PAIR:
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
        await lane.close()

    asyncio.run(run())


def test_a_star_is_every_address_of_this_machine():
    listeners = bind_sockets("*", 0)
    port = listeners[0].getsockname()[1]
    try:
        listeners[0].listen()
        for address in (*PAIR, *(["::1"] if any_address() == "::" else [])):
            socket.create_connection((address, port), 5).close()
    finally:
        closed(listeners)

    async def served():
        server = grpc.aio.server()
        address = bind(server, "*", port)
        await server.start()
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        finally:
            await server.stop(0)
        return address

    host = any_address()
    assert asyncio.run(served()) == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

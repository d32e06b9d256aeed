"""Connection limits of the gRPC port: who keeps his connections, and that others' are really closed."""

import asyncio
import socket

import pytest

from varangian.protos.refusals import Refusal
from varangian.server.limits import connections
from varangian.server.limits.connections import ConnectionLimits, ConnectionShare, parse_peer


@pytest.fixture
def kept(time):
    """Of a run whose port takes 36 connections."""
    return ConnectionLimits(1, print, ConnectionShare(worker=2, address=3), clock=lambda: time.now)


def peers(host, count, first=1000):
    return [(host, first + i) for i in range(count)]


def called(kept, time, addresses, who, proven=True):
    for host, port in addresses:
        time.advance(0.001)
        kept.note_call(f"ipv4:{host}:{port}", who, proven)
    return addresses


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:5678", ("192.0.2.1", 5678)),
        ("ipv6:%5B::1%5D:5678", ("::1", 5678)),
        ("ipv6:[::ffff:192.0.2.1]:5678", ("192.0.2.1", 5678)),
        ("ipv6:%5Bfe80::1%25eth0%5D:9", ("fe80::1", 9)),
        ("unix:/tmp/x", None),
        ("", None),
    ],
)
def test_the_other_end_as_grpc_writes_it(peer, address):
    assert parse_peer(peer) == address


def test_a_caller_keeps_its_newest_connections(kept, time):
    mine = called(kept, time, peers("192.0.2.1", 5), "w00")
    other = called(kept, time, peers("192.0.2.1", 2, first=2000), "w01")
    called(kept, time, mine[:1], "w00")  # the oldest is in use again
    assert kept.find_surplus(mine + other) == dict.fromkeys(mine[1:4], "w00")
    assert kept.find_surplus([mine[0], mine[4], *other]) == {}


def test_addresses_that_prove_nothing_have_a_share_of_their_own(kept, time):
    workers = called(kept, time, peers("192.0.2.1", 2), "w00")
    asking = called(kept, time, peers("192.0.2.1", 4, first=2000), "address 192.0.2.1", proven=False)
    assert list(kept.find_surplus(workers + asking)) == asking[:1]


def test_who_has_proved_something_on_a_connection_stays_proven_there(kept, time):
    (mine,) = called(kept, time, peers("192.0.2.1", 1), "w00")
    called(kept, time, [mine], "address 192.0.2.1", proven=False)
    worker_group = peers("198.51.100.1", 30)
    kept.find_surplus([mine, *worker_group])
    time.advance(5)
    assert mine not in kept.find_surplus([mine, *worker_group])


def test_in_a_crowd_strangers_are_left_a_quarter_and_the_fullest_address_pays(kept, time):
    mine = called(kept, time, peers("192.0.2.1", 2), "w00")
    few, many = peers("198.51.100.1", 3), peers("203.0.113.1", 25)
    assert kept.find_surplus(mine + few + many) == {}  # they may be about to call
    time.advance(5)
    late = peers("198.51.100.2", 2)
    closed = kept.find_surplus(mine + few + many + late)
    assert len(closed) == 3 + 25 + 2 - 36 // 4
    assert {host for host, _ in closed} == {"203.0.113.1"}


def test_while_there_is_room_silent_connections_are_left_alone(kept, time):
    silent = peers("203.0.113.1", 20)
    kept.find_surplus(silent)
    time.advance(50)
    assert kept.find_surplus(silent) == {}


def test_a_connection_can_be_named_and_only_once(kept, time):
    mine = called(kept, time, peers("192.0.2.1", 2), "w00")
    kept.drop("ipv4:192.0.2.1:1000")
    assert kept.find_surplus(mine) == {mine[0]: "w00"}
    assert kept.find_surplus(mine) == {}


def test_closing_ends_the_connection_of_that_address_and_no_other():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ends = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        held = [listener.accept()[0] for _ in ends]
        counted = []
        kept = ConnectionLimits(1, counted.append, ConnectionShare(worker=1))
        for end in ends:
            kept.note_call("ipv4:{}:{}".format(*end.getsockname()), "w00", True)
        assert set(connections.list_connections(port)) == {end.getsockname() for end in ends}
        assert asyncio.run(kept.close_surplus(port))
        assert counted == [Refusal.CONNECTIONS]
        assert ends[0].recv(1) == b""
        held[1].sendall(b"x")
        assert ends[1].recv(1) == b"x"
        for line in (*ends, *held):
            line.close()

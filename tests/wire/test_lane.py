"""Payloads beside gRPC, over loopback: the same runs as with chunks, whatever becomes of the lane."""

import asyncio
import contextlib
import logging
import random
import socket

import pytest
import torch
from tests.extent import patience
from tests.wire.kit import ALWAYS, LAYOUT, NAMES, Place, Run, all_worked, far, worked
from tests.wire.relay import FAR, WHOLE, Fate, Way

from varangian.aggregators import Median
from varangian.aggregators.kernels import accumulate, native
from varangian.protos.data_channel import streaming_aead
from varangian.protos.identity.bundle import Bundle
from varangian.protos.layout import Layout
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.worker.transport.client import Pulled

SIZE = LAYOUT.numel * 4
SLICE = 1 << 12
LONG = Layout((("weight", (SLICE * 4 * 20 + 77,)),))
"""Many blocks of columns, when they are of `SLICE`."""
MANY = {"uploads": 1000, "downloads": 1000}
"""Repetitions that a worker may need on a busy machine."""

pytestmark = pytest.mark.usefixtures("lasting")


async def varied(name, round, parameters):
    """No two numbers alike."""
    generator = torch.Generator().manual_seed(100 * round + NAMES.index(name))
    return parameters / 2 + torch.randn(parameters.numel(), generator=generator)


async def outcome(ways, rounds=2, compute=varied, options=None, **given):
    """The digest of a run whose workers go these ways: beside gRPC, or with chunks."""
    run = Run(rounds, absent_after=ALWAYS, **given)
    async with run.placed() as place, far(place, lane=None) as lines:
        addresses = {"lane": place.address, "chunks": lines.address}
        places = {name: addresses[way] for name, way in zip(run.names, ways, strict=True)}
        ended = await all_worked(run, places, compute, **options or {})
    assert set(ended) == {f"all {rounds} rounds are done"}
    assert all(record.missing == () for record in run.records)
    return run.learner.digest()


LANE, CHUNKS, MIXED = ["lane"] * 5, ["chunks"] * 5, ["lane", "chunks", "lane", "chunks", "lane"]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="rows"),
        pytest.param({"dtype": "bfloat16"}, id="sent as bfloat16"),
        pytest.param({"rows": "bfloat16"}, id="kept as bfloat16"),
        pytest.param({"limits": Limits(receiving=1, turn_seconds=0.005, grace=20.0)}, id="one seat"),
    ],
)
async def test_payloads_may_go_either_way_and_no_bit_changes(given):
    assert len({await outcome(ways, **given) for ways in (LANE, CHUNKS, MIXED)}) == 1


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        pytest.param("float32", "float32", marks=pytest.mark.exhaustive),
        pytest.param("bfloat16", "bfloat16", marks=pytest.mark.exhaustive),
    ],
)
async def test_rounds_in_a_window_end_alike_whichever_way_rows_come(monkeypatch, rows, dtype):
    monkeypatch.setattr(accumulate, "SLICE", SLICE)
    monkeypatch.setattr(native, "SLICE", SLICE)
    given = {"layout": LONG, "rule": Median(), "rows": rows, "dtype": dtype}
    whole = await outcome(CHUNKS, **given)
    for ways in (LANE, MIXED):
        assert await outcome(ways, **given, window=True) == whole
    seats = Limits(receiving=2, turn_seconds=0.005, grace=20.0)
    assert await outcome(MIXED, **given, window=True, limits=seats) == whole


async def test_payloads_are_on_the_lane_and_on_nothing_else():
    run = Run(rounds=2, absent_after=ALWAYS)
    async with run.placed() as place, far(place) as lines:
        await all_worked(run, lines.address)
    assert lines.lane.connections == len(NAMES)
    for beside, calls in ((lines.lane.up, lines.calls.up), (lines.lane.down, lines.calls.down)):
        assert SIZE * len(NAMES) * 2 <= beside.moved <= (SIZE + 64) * len(NAMES) * 2
        assert calls.moved < SIZE / 4


async def test_bfloat16_is_half_as_much():
    run = Run(rounds=1, dtype="bfloat16", absent_after=ALWAYS)
    async with run.placed() as place, far(place) as lines:
        await all_worked(run, lines.address)
    assert SIZE / 2 * len(NAMES) <= lines.lane.up.moved <= (SIZE / 2 + 64) * len(NAMES)


@contextlib.contextmanager
def refusing(port):
    """Nobody listens there, and the system says so."""
    yield


@contextlib.contextmanager
def dropping(port):
    """A listener that never accepts, with as many before the door as fit: who connects hears nothing."""
    with contextlib.ExitStack() as stack:
        closed = stack.enter_context(contextlib.closing(socket.socket()))
        closed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        closed.bind((FAR, port))
        closed.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(contextlib.closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex((FAR, port))
        yield


@pytest.mark.parametrize("wall", [refusing, dropping])
async def test_a_lane_that_cannot_be_reached_is_named_once_and_done_without(wall, caplog, monkeypatch):
    """A firewall that lets only the port of gRPC through."""
    if wall is dropping:
        monkeypatch.setattr("varangian.worker.transport.payloads.data_connection.PATIENCE", 0.2)
    caplog.set_level(logging.INFO, "varangian.worker")
    run = Run(absent_after=ALWAYS)
    async with run.placed() as place, far(place, lane=None) as lines:
        with wall(place.lane):
            await all_worked(run, lines.address)
    assert lines.calls.up.moved > SIZE * len(NAMES) * 3
    heard = [record.getMessage() for record in caplog.records]
    assert sum(f"data port {place.lane} of {FAR}" in line for line in heard) == len(NAMES), heard
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def disturbed(*fates, rounds=1, server=None, **options):
    """A run of which one worker's lane has these fates, one connection after the other."""
    # No round without all: on a busy machine a worker may look absent before it is back.
    run = Run(rounds, quorum=len(NAMES), **{"limits": server} if server else {})
    async with run.placed() as place, far(place, lane=fates) as lines:
        near = all_worked(run, dict.fromkeys(NAMES[1:], place.address))
        await asyncio.gather(worked(run, lines.address, "w00", **options), near)
    assert all((record.missing, record.dropped) == ((), {}) for record in run.records)
    assert all(len(record.weights) == len(NAMES) for record in run.records)
    assert run.problems() == []
    calm = Run(rounds, absent_after=ALWAYS)
    async with calm.served() as address:
        await all_worked(calm, address)
    assert run.learner.digest() == calm.learner.digest()
    return run, lines


@pytest.mark.parametrize(
    "fate",
    [
        pytest.param(Fate(down=0), id="at once"),
        pytest.param(Fate(up=7), id="in a ticket"),
        pytest.param(Fate(down=300_000), id="in a pull"),
        pytest.param(Fate(down=SIZE - 1), id="before the end of a pull"),
        pytest.param(Fate(up=300_000), id="in a push"),
        pytest.param(Fate(up=SIZE), id="before the end of a push"),
    ],
)
async def test_a_lane_that_is_cut_costs_a_repetition(fate, monkeypatch):
    monkeypatch.setattr("varangian.worker.transport.payloads.data_channel.REFUSAL_WAIT", 0.2)
    _, lines = await disturbed(fate)
    assert lines.lane.connections == 2
    assert lines.lane.up.moved >= SIZE
    assert lines.lane.down.moved >= SIZE


async def test_a_lane_that_is_cut_again_and_again_is_done_without():
    _, lines = await disturbed(*[Fate(down=300_000)] * 9)
    assert lines.lane.connections == 2
    assert lines.calls.up.moved > SIZE
    assert lines.calls.down.moved > SIZE


@pytest.mark.parametrize(
    ("hasty", "fate"),
    [
        ("server", Fate(up=300_000, silent=True)),
        ("worker", Fate(up=300_000, silent=True)),
        # The server has done its part when all of it is in buffers on the way.
        ("worker", Fate(down=300_000, silent=True)),
    ],
)
async def test_a_lane_that_swallows_everything_costs_a_silence(hasty, fate):
    options = {"idle": patience(0.4)} if hasty == "worker" else {}
    idle = {"idle": patience(0.4)} if hasty == "server" else {}
    server = Limits(patience=0.1, grace=20.0, **MANY, **idle)
    _, lines = await disturbed(fate, server=server, **options)
    assert lines.lane.connections >= 2


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(2, 10))]
)
async def test_lines_that_break_anywhere_change_no_bit(monkeypatch, seed):
    """Relays that pass odd pieces on, and cut connections of both kinds wherever chance has it."""
    monkeypatch.setattr("varangian.worker.transport.payloads.data_channel.REFUSAL_WAIT", 0.2)
    draw = random.Random(seed)
    monkeypatch.setattr("tests.wire.relay.AT_ONCE", draw.choice([997, 4099]))
    for kernels in (accumulate, native):
        monkeypatch.setattr(kernels, "SLICE", SLICE)
    given = {"layout": LONG, "rule": Median(), "f": 0, "dtype": draw.choice(["float32", "bfloat16"])}

    def fates(most):
        size = 6 * LONG.numel
        return [Fate(**{draw.choice(["up", "down"]): draw.randrange(size)}) for _ in range(most)]

    whole = await outcome(CHUNKS, **given)
    limits = Limits(receiving=draw.choice([1, 4]), turn_seconds=0.005, grace=20.0, **MANY)
    run = Run(2, **given, window=draw.random() < 0.5, limits=limits, absent_after=ALWAYS)
    async with run.placed() as place, far(place, calls=fates(3), lane=fates(12)) as lines:
        addresses = dict.fromkeys(NAMES, lines.address) | {"w04": place.address}
        await all_worked(run, addresses, varied)
    assert all((record.missing, record.dropped) == ((), {}) for record in run.records)
    assert run.learner.digest() == whole


async def test_who_is_sent_back_because_another_lane_broke_keeps_its_own(monkeypatch, caplog):
    """In a window all begin anew when one of them fails."""
    monkeypatch.setattr(accumulate, "SLICE", SLICE)
    monkeypatch.setattr(native, "SLICE", SLICE)

    caplog.set_level(logging.DEBUG, "varangian")
    run = Run(rounds=2, layout=LONG, rule=Median(), f=0, window=True, absent_after=ALWAYS)
    async with run.placed() as place, far(place, lane=[Fate(up=700_000)] * 2) as lines:
        near = all_worked(run, dict.fromkeys(NAMES[1:], place.address), varied)
        await asyncio.gather(worked(run, lines.address, "w00", varied), near)
    assert sum("RESTARTED" in record.getMessage() for record in caplog.records) >= 8
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name == "varangian.worker.transport.payloads.data_channel"
    ]
    assert [FAR in line for line in said] == [True]


async def test_a_lane_whose_calls_break_again_and_again_is_done_without():
    """On a narrow line with much room for what waits, nothing else arrives while a payload is under way."""
    run = Run(rounds=1, f=0, names=NAMES[:1], rule=Median())
    async with run.placed() as place, far(place, rate=4e6) as lines:
        working = asyncio.create_task(worked(run, lines.address, "w00"))
        for _ in range(2):
            before = lines.lane.up.moved
            while lines.lane.up.moved <= before + SIZE / 10:
                await asyncio.sleep(0.01)
            await lines.calls.cut()
            before = lines.lane.up.moved
        assert await working == "all 1 rounds are done"
    assert lines.lane.up.moved < SIZE < lines.calls.up.moved


async def test_a_server_that_is_started_again_is_found_at_its_new_port():
    first = Run(run_id="run-1", limits=Limits(grace=0.05))
    second = Run(rounds=1, run_id="run-2", names=NAMES[:1], f=0)
    async with contextlib.AsyncExitStack() as stack:
        place = await stack.enter_async_context(first.placed())
        port = int(place.address.rpartition(":")[2])
        lines = await stack.enter_async_context(far(place))
        client = await stack.enter_async_context(second.client(lines.address, "w00"))
        await client.join()
        assert isinstance(await client.pull(-1), Pulled)
        await killed(first)
        again = await stack.enter_async_context(second.placed(port))
        assert again.lane != place.lane
        elsewhere = Place(f"127.0.0.1:{port}", again.lane)
        async with far(elsewhere, calls=None) as later:
            pulled = await client.pull(0)
            assert (client.run, pulled.round) == ("run-2", 0)
            assert (await client.push(0, pulled.parameters)).counted
            await client.pull(0)
            assert later.lane.up.moved > SIZE
            assert later.lane.down.moved >= SIZE


async def killed(run):
    run.ended.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run.ended


async def secured(path, lane):
    """The digest of a run over TLS whose lanes have these fates, and the lines."""
    run = Run(rounds=2, security=Security(path), absent_after=ALWAYS)
    async with run.placed() as place, far(place, lane=lane) as lines:
        works = (worked(run, lines.address, name, proof=Bundle.load(path / name)) for name in NAMES)
        assert set(await asyncio.gather(*works)) == {"all 2 rounds are done"}
    assert all((record.missing, record.dropped) == ((), {}) for record in run.records)
    return run.learner.digest(), lines


@pytest.mark.parametrize(
    "fate",
    [
        pytest.param(WHOLE, id="whole"),
        pytest.param(Fate(down=300_000), id="cut in a pull"),
        pytest.param(Fate(up=300_000), id="cut in a push"),
        pytest.param(Fate(up=3, changed=True), id="changed in a ticket"),
        pytest.param(Fate(up=20, changed=True), id="changed in a header"),
        pytest.param(Fate(down=300_000, changed=True), id="changed in a pull"),
        pytest.param(Fate(up=16 + SIZE, changed=True), id="changed in a tag"),
    ],
)
async def test_over_tls_the_lane_is_one_too(certified, fate):
    async with (run := Run(rounds=2, absent_after=ALWAYS)).served() as address:
        await all_worked(run, address)
    digest, lines = await secured(certified, [fate] * len(NAMES))
    assert digest == run.learner.digest()
    assert lines.lane.up.moved > SIZE * len(NAMES) * 2
    assert lines.lane.connections == len(NAMES) * (1 + (fate is not WHOLE))


async def test_what_is_sealed_is_a_little_more_and_no_one_else_can_read_it(certified, monkeypatch):
    seen = bytearray()
    move = Way.move

    async def watched(way, reader, writer, left, changed=False):
        write = writer.write
        monkeypatch.setattr(writer, "write", lambda data: seen.extend(data) or write(data), raising=False)
        await move(way, reader, writer, left, changed)

    monkeypatch.setattr(Way, "move", watched)
    _, lines = await secured(certified, [])
    ones = torch.ones(64).numpy().tobytes()
    assert len(seen) > SIZE * len(NAMES) * 4
    assert ones not in seen
    for beside in (lines.lane.up, lines.lane.down):
        assert SIZE * len(NAMES) * 2 <= beside.moved <= (SIZE * 1.001 + 64) * len(NAMES) * 2
    seen.clear()
    async with (run := Run(rounds=1)).placed() as place, far(place) as lines:
        await all_worked(run, lines.address)
    assert ones in seen


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 6))]
)
async def test_no_key_has_a_nonce_twice_whatever_breaks(certified, monkeypatch, seed):
    """Also of payloads that are sent again, on lines that are cut, changed and opened anew."""
    monkeypatch.setattr("varangian.worker.transport.payloads.data_channel.REFUSAL_WAIT", 0.2)
    monkeypatch.setattr("varangian.worker.transport.payloads.data_channel.MOST_FAILURES", 100)
    used, cipher = [], streaming_aead._cipher

    class Recording:
        """Of all ends: they are in this process."""

        def __init__(self, key):
            self.key, self.cipher = key, cipher(key)

        def encrypt_into(self, nonce, *given):
            used.append((self.key, nonce))
            return self.cipher.encrypt_into(nonce, *given)

        def decrypt_into(self, *given):
            return self.cipher.decrypt_into(*given)

    monkeypatch.setattr(streaming_aead, "_cipher", Recording)
    draw = random.Random(seed)

    def fates(most):
        ways = ("up", "down")
        return [
            Fate(**{draw.choice(ways): draw.randrange(2 * SIZE)}, changed=draw.random() < 0.3)
            for _ in range(most)
        ]

    limits = Limits(grace=20.0, **MANY)
    run = Run(3, f=0, rule=Median(), limits=limits, security=Security(certified), absent_after=ALWAYS)
    async with run.placed() as place, far(place, calls=fates(3), lane=fates(15)) as lines:
        works = (worked(run, lines.address, name, proof=Bundle.load(certified / name)) for name in NAMES)
        assert set(await asyncio.gather(*works)) == {"all 3 rounds are done"}
    assert [(record.missing, record.dropped) for record in run.records] == [((), {})] * 3
    payloads = len({key for key, _ in used})
    assert len(set(used)) == len(used)
    assert lines.lane.connections > 2 * len(NAMES), "lines were opened anew"
    assert payloads > 2 * 3 * len(NAMES), "payloads were sent again"


async def test_a_server_that_cannot_seal_says_so_and_has_no_lane(certified, monkeypatch, caplog):
    monkeypatch.setattr("varangian.server.app.why_unavailable", lambda: "this is the reason")
    run = Run(rounds=1, security=Security(certified))
    async with run.placed() as place:
        assert place.lane is None
        works = (worked(run, place.address, name, proof=Bundle.load(certified / name)) for name in NAMES)
        assert set(await asyncio.gather(*works)) == {"all 1 rounds are done"}
    assert "payloads travel over gRPC, several times slower: this is the reason" in caplog.text
    async with Run(rounds=1).placed() as place:
        assert place.lane, "in clear text there is nothing to seal"

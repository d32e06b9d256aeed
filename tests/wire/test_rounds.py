"""Server and workers as they run, over loopback: whole rounds, and what a bad line does to them."""

import asyncio
import contextlib

import pytest
import torch

from varangian.aggregators import Aggregator, Krum
from varangian.protos.layout import Layout
from varangian.server.driver import Driver
from varangian.server.events import RoundPolicy
from varangian.server.learner import Learner
from varangian.server.optimizer import Sgd
from varangian.server.roster import Roster
from varangian.server.round import RoundMachine
from varangian.server.service import serve
from varangian.server.streams import Limits
from varangian.worker.backoff import Backoff
from varangian.worker.client import Client, ClientError
from varangian.worker.loop import work

NAMES = tuple(f"w{i:02d}" for i in range(5))
LAYOUT = Layout((("weight", (500, 1000)), ("bias", (3,))))
"""Two chunks."""
PATIENT = Backoff(tries=100, first=0.01, most=0.05)
UNHEARD = Limits(grace=0.1)
"""For who is not there any more at the end of the run."""


class Run:
    """One server, and what came of it."""

    def __init__(self, rounds=3, layout=LAYOUT, f=1, deadline=60.0, limits=None):
        self.layout, self.records = layout, []
        policy = RoundPolicy(NAMES, rounds, quorum=4, deadline=deadline, shortfall="wait", f=f)
        self.learner = Learner(
            torch.ones(layout.numel), Aggregator(Krum(f=f)), Sgd(lr=0.5), rounds=rounds, seed=1
        )
        self.driver = Driver(
            RoundMachine(policy),
            self.learner,
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=100,
            observe=self.records.append,
        )
        self.roster = Roster(NAMES, b"0123456789abcdef", silence=0.05)
        self.limits = limits or Limits(idle=20.0, grace=20.0)
        self.stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def served(self, port=0):
        ready = asyncio.get_running_loop().create_future()
        self.ended = asyncio.create_task(
            serve(
                self.driver,
                self.roster,
                self.layout,
                run_id="run-1",
                host="127.0.0.1",
                port=port,
                ready=ready.set_result,
                stop=self.stop,
                limits=self.limits,
            )
        )
        await asyncio.wait({ready, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield ready.result()
        finally:
            self.stop.set()
            await self.ended

    def client(self, address, name, **options):
        return Client(
            address,
            name,
            self.roster.token(name),
            self.layout,
            **{"backoff": PATIENT, "idle": 20.0} | options,
        )


async def gradient(name, round, parameters):
    """A little different for each worker and round; every operation exact in float32."""
    return parameters / 2 + (NAMES.index(name) + round) / 8


async def served_by(run, address, names=NAMES, delays=(), compute=gradient):
    async def one(name, delay):
        await asyncio.sleep(delay)
        async with run.client(address, name) as client:
            return await work(client, lambda round, parameters: compute(name, round, parameters))

    delays = delays or [0.0] * len(names)
    return await asyncio.gather(*(one(name, delay) for name, delay in zip(names, delays, strict=True)))


def scenario(test):
    def run():
        asyncio.run(asyncio.wait_for(test(), 100))

    run.__name__ = test.__name__
    return run


@scenario
async def test_a_run_from_join_to_the_end():
    torch.set_num_threads(1)
    run = Run()
    async with run.served() as address:
        assert set(await served_by(run, address)) == {"all 3 rounds are done"}
    assert [record.round for record in run.records] == [0, 1, 2]
    assert all(record.missing == () and record.dropped == {} for record in run.records)
    # Krum takes a row in the middle, always the same one here: x <- x - (x / 2 + (i + round) / 8) / 2.
    (chosen,) = {max(record.weights, key=record.weights.get) for record in run.records}
    x = 1.0
    for round in range(3):
        x -= (x / 2 + (NAMES.index(chosen) + round) / 8) / 2
    assert torch.equal(run.learner.parameters, torch.full((LAYOUT.numel,), x))


@scenario
async def test_who_comes_first_changes_no_bit():
    digests = set()
    for delays in (
        (0.0, 0.02, 0.04, 0.06, 0.08),
        (0.08, 0.06, 0.04, 0.02, 0.0),
        (0.04, 0.0, 0.08, 0.02, 0.06),
    ):
        run = Run(rounds=2)
        async with run.served() as address:
            await served_by(run, address, delays=delays)
        digests.add(run.learner.digest())
    assert len(digests) == 1


@scenario
async def test_a_worker_that_sends_nan_is_dropped_every_round_and_stops_nobody():
    async def compute(name, round, parameters):
        honest = await gradient(name, round, parameters)
        return honest * float("nan") if name == "w04" else honest

    run = Run()
    async with run.served() as address:
        assert set(await served_by(run, address, compute=compute)) == {"all 3 rounds are done"}
    assert [set(record.dropped) for record in run.records] == [{"w04"}] * 3
    assert torch.isfinite(run.learner.parameters).all()


@scenario
async def test_a_worker_that_never_comes_costs_the_deadline_and_no_more():
    run = Run(rounds=2, deadline=0.2)
    async with run.served() as address:
        await served_by(run, address, NAMES[:4])
    assert [record.missing for record in run.records] == [("w04",)] * 2


@scenario
async def test_a_worker_may_come_before_its_server():
    run = Run(rounds=1)
    async with run.served() as address:
        port = int(address.rpartition(":")[2])
    early = Run(rounds=1)
    workers = asyncio.create_task(served_by(early, f"127.0.0.1:{port}"))
    await asyncio.sleep(0.05)
    async with early.served(port):
        assert set(await workers) == {"all 1 rounds are done"}


@scenario
async def test_a_worker_whose_server_has_gone_says_so():
    run = Run(limits=UNHEARD)
    async with run.served() as address, run.client(address, "w00", backoff=Backoff(2, 0.01)) as client:
        await client.join()
        run.stop.set()
        await run.ended
        with pytest.raises(ClientError, match=r"Worker w00 could not push round 0 at 127.* after 2 tries"):
            await client.push(0, torch.zeros(LAYOUT.numel))


@scenario
async def test_a_worker_of_another_model_hears_which_parameter_differs():
    run = Run()
    other = Layout((("weight", (500, 1000)), ("bias", (4,))))
    async with run.served() as address, Client(address, "w00", run.roster.token("w00"), other) as client:
        with pytest.raises(ClientError, match=r"'bias' of shape \[3\]. Found 'bias' of shape \[4\]"):
            await client.join()


@scenario
async def test_a_restarted_worker_takes_its_name_over_once_the_old_one_is_silent():
    run = Run(limits=UNHEARD)
    async with (
        run.served() as address,
        run.client(address, "w00") as old,
        run.client(address, "w00") as new,
    ):
        await old.join()
        await new.join()
        with pytest.raises(ClientError, match="Another process speaks for w00 now"):
            await old.pull(-1)


class Line:
    """A TCP relay that breaks each connection after so many bytes towards the server; the last is whole."""

    def __init__(self, target, cuts):
        self.target, self.cuts, self.relays = target.split(":"), list(cuts), []

    @contextlib.asynccontextmanager
    async def laid(self):
        server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for relay in self.relays:
                relay.cancel()
            await asyncio.gather(*self.relays, return_exceptions=True)
            # A transport that was aborted closes its socket in the next turns of the loop.
            await asyncio.sleep(0.01)

    async def relay(self, reader, writer):
        self.relays.append(asyncio.current_task())
        left = self.cuts.pop(0) if self.cuts else float("inf")
        up_reader, up_writer = await asyncio.open_connection(*self.target)
        pumps = {
            asyncio.create_task(self.pump(reader, up_writer, left)),
            asyncio.create_task(self.pump(up_reader, writer, float("inf"))),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, up_writer):
                end.transport.abort()

    async def pump(self, reader, writer, left):
        with contextlib.suppress(OSError):
            while left > 0 and (data := await reader.read(1 << 16)):
                left -= len(data)
                writer.write(data)
                await writer.drain()


@scenario
async def test_a_line_that_breaks_in_the_middle_of_a_push_costs_a_repetition():
    run = Run(rounds=1)
    async with run.served() as address:
        line = Line(address, cuts=[300_000, 1_200_000, LAYOUT.numel * 4])
        stubborn = Backoff(40, 0.02, 0.1)
        async with line.laid() as broken, run.client(broken, "w00", backoff=stubborn) as client:
            worker = asyncio.create_task(work(client, lambda *given: gradient("w00", *given)))
            await asyncio.gather(worker, served_by(run, address, NAMES[1:]))
    assert len(line.relays) >= 4
    (record,) = run.records
    assert (record.missing, record.dropped) == ((), {})
    assert len(record.weights) == 5


@scenario
async def test_workers_share_the_seats():
    layout = Layout((("weight", (2, 1024, 1024)),))
    run = Run(rounds=1, layout=layout, limits=Limits(receiving=1, turn=0.005, grace=20.0))
    async with run.served() as address:
        await served_by(run, address)
    assert run.records[0].missing == ()

"""A server as it runs, where it can be reached, and the lines to it."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from math import inf
from unittest import mock

import torch
from tests.history import RecordingMachine, Rules, check
from tests.wire.relay import FAR, NEAR, Relay

from varangian.aggregators import Aggregator, Krum
from varangian.protos.data_channel.listener import DataListener
from varangian.protos.layout import Layout
from varangian.server.app import serve
from varangian.server.identity.sessions import RECONNECT_GRACE, Sessions
from varangian.server.limits.limits import Limits
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.state import RunPolicy, unconditional
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.worker.loop import work
from varangian.worker.transport.client import Client
from varangian.worker.transport.retry import Backoff

NAMES = tuple(f"w{i:02d}" for i in range(5))
LAYOUT = Layout((("weight", (500, 1000)), ("bias", (3,))))
"""Two chunks."""
SERVICE = ("dtype", "security", "run_id", "returns", "end", "terms")
"""Options that are for `serve`."""
PATIENT = Backoff(tries=1000, first=0.01, most=0.05)
ALWAYS = 1e9
"""Seconds: longer than any machine pauses."""


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    address: str
    lane: int | None
    """The port of its lane, if it has one."""


@dataclass(frozen=True)
class Lines:
    """Relays to a server."""

    address: str | None
    """For workers."""
    calls: Relay | None
    lane: Relay | None

    @property
    def relays(self):
        """Those that there are."""
        return [relay for relay in (self.calls, self.lane) if relay]

    def hole(self):
        """Let nothing through on either port, and tell nobody."""
        for relay in self.relays:
            relay.hole()

    def heal(self):
        """Let everything through again."""
        for relay in self.relays:
            relay.heal()

    async def reset(self):
        """Break all connections that stand, with a reset."""
        for relay in self.relays:
            await relay.reset()


@contextlib.asynccontextmanager
async def serving(coordinator, sessions, layout, *, stop, port=0, data_port=0, **options):
    """A server at NEAR; yields its place and its task."""
    ready, lanes, listen = asyncio.get_running_loop().create_future(), [], DataListener.listen

    def noted(lane, sockets):
        lanes.append(listen(lane, sockets))
        return lanes[0]

    running = serve(
        coordinator,
        sessions,
        layout,
        host=NEAR,
        port=port,
        ready=ready.set_result,
        stop=stop,
        data_port=data_port,
        **{"run_id": "run-1"} | options,
    )
    with mock.patch.object(DataListener, "listen", noted):
        ended = asyncio.create_task(running)
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        ended.result()
    try:
        yield Place(ready.result(), lanes[0] if lanes else None), ended
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await ended


@contextlib.asynccontextmanager
async def far(place, rate=inf, *, calls=(), lane=(), **line):
    """Relays to a server at FAR, with the fates of their connections; None in their place is no relay.

    The options of the `line` are those of a `Relay`, and the same on both ports.
    """
    targets = (place.address, calls), (f"{NEAR}:{place.lane}", None if place.lane is None else lane)
    relays = [None if fates is None else Relay(target, rate, fates, **line) for target, fates in targets]
    async with contextlib.AsyncExitStack() as stack:
        laid = [relay and await stack.enter_async_context(relay.laid(FAR)) for relay in relays]
        yield Lines(laid[0], *relays)


class Run:
    """One server of rounds, and what came of it."""

    data_port: int | None = 0

    def __init__(
        self,
        rounds=3,
        layout=LAYOUT,
        f=1,
        deadline=60.0,
        limits=None,
        rule=None,
        names=NAMES,
        quorum=None,
        lr=0.5,
        timeout=0.05,
        requires=unconditional,
        mix=(),
        seed=1,
        sessions_clock=time.monotonic,
        absent_after=RECONNECT_GRACE,
        **options,
    ):
        torch.set_num_threads(1)
        self.layout, self.names, self.records = layout, names, []
        quorum = quorum or len(names) - f
        policy = RunPolicy(
            names,
            rounds,
            quorum=quorum,
            deadline=deadline,
            shortfall="wait",
            f=f,
            requires=requires,
            selection=Everyone(),
        )
        aggregator = Aggregator(rule or Krum(f=f), mix, f=f)

        def learner():
            return Learner(torch.ones(layout.numel), aggregator, Sgd(lr=lr), rounds=rounds, seed=seed)

        self.learner, self.again = learner(), learner
        machine = RecordingMachine(policy)
        machine.parameters = self.learner.digest
        self.recorder, self.rules = machine.recorder, Rules(quorum, f, honest=names, requires=requires)
        self.service = {key: options.pop(key) for key in SERVICE if key in options}
        self.coordinator = Coordinator(
            options.pop("machine", machine),
            self.learner,
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=100,
            observe=self.records.append,
            **options,
        )
        security = self.service.get("security")
        secret, certificate_reader = (
            (None, security.certificate_reader) if security else (b"0123456789abcdef", None)
        )
        self.sessions = Sessions(
            names,
            secret,
            timeout=timeout,
            absent_after=absent_after,
            certificate_reader=certificate_reader,
            clock=sessions_clock,
        )
        self.limits = limits or Limits(idle=20.0, status=0.0, grace=20.0)
        self.stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def placed(self, port=0):
        """Yields the place; `self.ended` is the task of the server."""
        place = serving(
            self.coordinator,
            self.sessions,
            self.layout,
            stop=self.stop,
            port=port,
            data_port=self.data_port,
            limits=self.limits,
            **self.service,
        )
        async with place as (where, self.ended):
            yield where

    @contextlib.asynccontextmanager
    async def served(self, port=0):
        """Yields the address alone."""
        async with self.placed(port) as place:
            yield place.address

    def problems(self):
        """What is wrong with the history of a run whose workers compute `gradient`."""
        return check(self.recorder.events, replace(self.rules, recomputed=Recomputed(self.again())))

    def client(self, address, name, proof=None, **options):
        return Client(
            address,
            name,
            proof or self.sessions.token(name),
            options.pop("layout", self.layout),
            **{"backoff": PATIENT, "idle": 20.0} | options,
        )


async def until(happened):
    """Return once this is so."""
    while not happened():
        await asyncio.sleep(0.005)


async def gradient(name, round, parameters):
    """A little different for each worker and round; every operation exact in float32."""
    return vector(name, round, parameters)


def vector(name, round, parameters):
    return parameters / 2 + (NAMES.index(name) + round) / 8


class Recomputed:
    """The parameters of a run whose workers compute `gradient`, from who took part in each round."""

    def __init__(self, learner):
        self.learner = learner

    def commit(self, round, workers, faults):
        parameters = self.learner.parameters
        rows = {name: vector(name, made_for, parameters) for name, made_for in workers.items()}
        self.learner.step(round, rows, dict.fromkeys(faults, ""))
        return self.learner.digest()


async def worked(run, address, name, compute=gradient, **options):
    """One worker until the end of the run; returns how it ended."""
    async with run.client(address, name, **options) as client:
        return await work(client, lambda *given: compute(name, *given))


async def all_worked(run, addresses, compute=gradient, **options):
    """All workers, each at its own address or all at one."""
    if isinstance(addresses, str):
        addresses = dict.fromkeys(run.names, addresses)
    works = (worked(run, address, name, compute, **options) for name, address in addresses.items())
    return await asyncio.gather(*works)

"""An honest worker that is killed and started again, or whose line is cut, at every stage of a round.

Whatever the stage, nobody is proven faulty, and everybody is there at the end.
"""

import asyncio
import functools

import pytest
from tests.wire.kit import LAYOUT, NAMES, Run, far, until, worked
from tests.wire.relay import Fate

from varangian.aggregators import Median
from varangian.protos.identity.bundle import Bundle
from varangian.protos.layout import Layout
from varangian.protos.metadata_keys import WORKER
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.server.participation.selection import LongestAbsent
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rows.latest import LatestVectors
from varangian.server.transport.service import Service
from varangian.server.transport.uploads import Upload
from varangian.worker.loop import work
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.results import Declined

VICTIM, *OTHERS = NAMES
ROUNDS = 3
HALF = LAYOUT.numel * 2


def by_call(_, __, context):
    return dict(context.invocation_metadata())[WORKER]


def by_name(_, worker, *__):
    return worker


def by_slot(_, slot):
    return slot.worker


def by_upload(upload, _):
    return upload._slot.worker


TRAPS = {
    "join asked": (Service, "join", by_call, "before"),
    "join answered": (Service, "join", by_call, "after"),
    "pull asked": (Service, "pull", by_call, "before"),
    "pull answered": (Service, "pull", by_call, "after"),
    "push asked": (Service, "push", by_call, "before"),
    "push offered": (Upload, "receive", by_upload, "before"),
    "last byte there": (Upload, "receive", by_upload, "after"),
    "counted, not told": (Coordinator, "complete", by_slot, "after"),
    "decline asked": (Coordinator, "decline", by_name, "before"),
    "declined, not told": (Coordinator, "decline", by_name, "after"),
}
"""Where at the server the first call of the victim is held up: the call, whose it is, and at which end."""
FATES = {"connecting": Fate(up=10), "half a model": Fate(down=HALF), "half a vector": Fate(up=HALF)}
"""After how many bytes its line breaks."""
LOCAL = ("computing", "told that it counts")
STAGES = (*FATES, *TRAPS, *LOCAL)


class Stage:
    """One moment in the life of the victim: `reached` is set then, and the server goes on after `over`."""

    def __init__(self, name, monkeypatch):
        self.name = name
        self.reached, self.over = asyncio.Event(), asyncio.Event()
        if name in TRAPS:
            owner, method, whose, when = TRAPS[name]
            monkeypatch.setattr(owner, method, self._held(getattr(owner, method), whose, when))

    def _held(self, original, whose, when):
        @functools.wraps(original)
        async def held(*given):
            first = whose(*given) == VICTIM and not self.reached.is_set()
            try:
                if first and when == "before":
                    await self.wait()
                answer = await original(*given)
                if first and when == "after":
                    await self.wait()
                return answer
            finally:
                del given  # a refusal is kept with this frame, as those of the server are

        return held

    async def wait(self):
        self.reached.set()
        await self.over.wait()

    def fates(self, way):
        """Of the lines for calls, and of those for payloads."""
        if self.name not in FATES:
            return {}
        fate = [FATES[self.name]]
        return {"lane" if way != "chunks" and self.name != "connecting" else "calls": fate}


def vector(name, round, parameters, life=0):
    """Not the same in another life: the momentum of the first is gone."""
    return parameters / 2 + (NAMES.index(name) + round + life / 2) / 8


class Story:
    """The run, its honest workers, and the one that is struck at the stage.

    A process that is killed has left at once. One whose line is cut comes back in time, however long that
    takes on a busy machine: the clock of the sessions stands.
    """

    def __init__(self, stage, kind, way, certified, killed):
        self.stage, self.way, self.killed = stage, way, killed
        options = {"limits": Limits(idle=20.0, patience=0.2, grace=20.0)}
        if not killed:
            options["sessions_clock"] = lambda: 0.0
        if kind == "window":
            options |= {"window": True, "rule": Median()}
        if kind == "invited":
            policy = RunPolicy(
                NAMES,
                rounds=ROUNDS,
                quorum=len(NAMES) - 1,
                deadline=60.0,
                shortfall="wait",
                f=1,
                selection=LongestAbsent(len(NAMES), gather=30.0),
            )
            options["machine"] = Machine(policy)
            options["row_source"] = LatestVectors.of(NAMES, LAYOUT.numel, len(NAMES))
        if way == "tls":
            options["security"] = Security(certified / "server")
        self.run = Run(ROUNDS, **options)
        self.run.data_port = None if way == "chunks" else 0
        self.proofs = {name: Bundle.load(certified / name) if way == "tls" else None for name in NAMES}
        self.kind = kind
        self.again, self.at_the_end = asyncio.Event(), asyncio.Event()
        self.lives = 0

    async def honest(self, name, round, parameters):
        # The second life is to come in the round of the first. In a window vectors count together.
        if self.kind != "window" and round == 0:
            await self.again.wait()
        # A killed worker may be away for any number of rounds; the last one comes when it is there again.
        if self.kind != "invited" and round == ROUNDS - 1:
            await self.at_the_end.wait()
        return vector(name, round, parameters)

    async def live(self, address):
        """One life of the victim, in a process of its own as far as the server can tell."""
        life, self.lives = self.lives, self.lives + 1

        async def compute(round, parameters):
            if round == ROUNDS - 1:
                self.at_the_end.set()
            if life:
                return vector(VICTIM, round, parameters, life)
            if self.stage.name == "computing" or (self.stage.name == "told that it counts" and told):
                await self.stage.wait()
            if "decline" in self.stage.name and not self.stage.over.is_set():
                raise Declined("no memory")
            return vector(VICTIM, round, parameters)

        told = []
        async with self.run.client(address, VICTIM, self.proofs[VICTIM]) as client:
            push = client.push

            async def noted(*given):
                receipt = await push(*given)
                told.append(receipt)
                if life or self.stage.over.is_set():
                    self.again.set()
                elif self.stage.name == "told that it counts":
                    await self.stage.wait()
                return receipt

            client.push = noted
            if life and self.kind == "invited":
                await client.join()
                self.again.set()  # whoever was gone is invited again when there is a place, in any round
            try:
                return await work(client, compute)
            finally:
                del client.push  # with which it would be in a circle

    async def struck(self, place):
        """How the victim ends, after what happens to it at the stage."""
        async with far(place, **self.stage.fates(self.way)) as lines:
            relays = [relay for relay in (lines.calls, lines.lane) if relay]
            first = asyncio.create_task(self.live(lines.address))
            if self.stage.name in FATES:
                relay = lines.lane if "lane" in self.stage.fates(self.way) else lines.calls
                await until(lambda: relay.broken)
            else:
                await self.stage.reached.wait()
            for relay in relays:
                await relay.cut()
            self.stage.over.set()
            if not self.killed:
                self.again.set()
                return await first
        first.cancel()  # its lines are gone, and nobody listens where it looks for them
        await asyncio.gather(first, return_exceptions=True)
        return await self.live(place.address)

    async def told(self):
        async with self.run.placed() as place:
            others = [
                asyncio.create_task(
                    worked(self.run, place.address, name, self.honest, proof=self.proofs[name])
                )
                for name in OTHERS
            ]
            ended = await self.struck(place)
            self.again.set()
            return {ended, *await asyncio.gather(*others)}


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "cut"])
@pytest.mark.parametrize("way", ["tls", "chunks"])
@pytest.mark.parametrize("kind", ["rounds", "window", "invited"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_restart_at_any_stage_is_no_fault(stage, kind, way, killed, certified, monkeypatch):
    this = Story(Stage(stage, monkeypatch), kind, way, certified, killed)
    assert await this.told() == {f"all {ROUNDS} rounds are done"}
    assert [record.dropped for record in this.run.records] == [{}] * ROUNDS
    if kind != "invited":
        without = [record.round for record in this.run.records if VICTIM in record.missing]
        # Beside the round of its upload, which in a window goes on without it, a cut line costs nothing.
        assert {*without} <= ({*range(ROUNDS - 1)} if killed else {0})
    assert this.run.coordinator.status().faulty == {}


@pytest.mark.parametrize("stage", ["half a vector", "told that it counts"])
async def test_a_worker_that_is_started_again_with_another_model_is_refused_and_not_faulty(
    stage, certified, monkeypatch
):
    this = Story(Stage(stage, monkeypatch), "rounds", "chunks", certified, killed=True)
    live, another = this.live, Layout((("weight", (500, 1000)), ("bias", (4,))))

    async def changed(address):
        if not this.lives:
            return await live(address)
        async with this.run.client(address, VICTIM, layout=another) as client:
            with pytest.raises(ClientError, match=r"'bias' of shape \[3\].*\[4\]|LAYOUT"):
                await client.join()
        this.again.set()
        this.at_the_end.set()
        return f"all {ROUNDS} rounds are done"

    this.live = changed
    assert await this.told() == {f"all {ROUNDS} rounds are done"}
    assert [record.dropped for record in this.run.records] == [{}] * ROUNDS

"""Coordinators whose workers change: rows, rule, record, and what a checkpoint has of it."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.server.rounds.kit import D, Driven, Memory

from varangian.aggregators import Aggregator, Krum
from varangian.protos.refusals import Refusal
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.membership import MemberChange
from varangian.server.rows.delta_sum import DeltaSum
from varangian.server.rows.latest import LatestVectors
from varangian.server.rows.latest_store import NoRoom
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

NAMES = ("w00", "w01", "w02", "w03")
OTHERS = ("w00", "w01", "w02", "w04", "w05")
ROUNDS = 6
CHOICES = {"sync": Everyone(), "latest vectors": LongestAbsent(k=2, gather=2.0)}


class Run(Driven):
    """A run whose workers may change."""

    def __init__(self, time, choice=CHOICES["sync"], workers=NAMES, f=0, **options):
        if isinstance(choice, LongestAbsent):
            options = {"row_source": LatestVectors.of(workers, D, choice.k), **options}
        policy = RunPolicy(workers, ROUNDS, 1, 10.0, "wait", f, selection=choice)
        learner = Learner(torch.ones(D), Aggregator(Krum(f=f), f=f), Sgd(lr=0.5), rounds=ROUNDS, seed=1)
        super().__init__(time, policy, learner, **options)
        self.coordinator.on_members = self.connect

    async def follow(self, change):
        """The first round with this change."""
        await self.coordinator.make_room(change)
        return self.coordinator.change_members(change)

    def connect(self, members, _):
        """Whoever is admitted is there, as a server finds at once."""
        for worker in members.admitted:
            self.coordinator.present(worker)

    def change(self, workers=OTHERS, f=1, expelled=()):
        """The change to these workers."""
        policy = replace(self.machine.policy, workers=workers, f=f)
        gone = {name: "drained" for name in NAMES if name not in workers}
        aggregator = Aggregator(Krum(f=f), f=f)
        return MemberChange(policy, aggregator, 2, len(workers), gone, frozenset(expelled), ("asked",))

    async def round(self):
        """One round of all workers that there are."""
        round, names = self.coordinator.round, self.machine.policy.workers
        pulls = {name: self.coordinator.pulls.ask(name, round - 1) for name in names}
        for name, pull in pulls.items():
            if not self.machine.by_invitation or pull.answer is not None:
                await self.push(name, float(torch.tensor([round, int(name[1:])]).float().add(1).prod()))
        while len(self.records) <= round - self.coordinator.first:
            await asyncio.sleep(0)


@pytest.mark.parametrize("name", CHOICES)
async def test_a_run_with_other_workers_goes_on_from_each_border_with_the_same_bits(time, name):
    keeper = Memory()
    async with Run(time, CHOICES[name], keeper=keeper) as straight:
        for round in range(ROUNDS):
            if round == 2:
                assert await straight.follow(straight.change()) == 3
            await straight.round()
        await straight.ended()
    known = [record.membership for record in straight.records]
    assert [*map(bool, known)] == [False, False, False, True, False, False]
    assert (known[3]["admitted"], known[3]["gone"]) == (["w04", "w05"], {"w03": "drained"})
    assert (known[3]["workers"], known[3]["f"], known[3]["by"]) == ([*OTHERS], 1, ["asked"])
    for border in range(1, ROUNDS):
        members = keeper.kept[border]["members"]
        assert (tuple(members["workers"]), members["f"]) == ((OTHERS, 1) if border > 2 else (NAMES, 0))
        options = {"workers": tuple(members["workers"]), "f": members["f"], "state": keeper.kept[border]}
        async with Run(time, CHOICES[name], **options) as resumed:
            for round in range(border, ROUNDS):
                if round == 2:
                    await resumed.follow(resumed.change())
                await resumed.round()
            await resumed.ended()
        if border > 2:
            assert resumed.learner.digest() == straight.learner.digest()
            assert [r.weights for r in resumed.records] == [r.weights for r in straight.records[border:]]


@pytest.mark.parametrize("name", CHOICES)
async def test_a_change_after_the_checkpoint_holds_from_the_start(time, name):
    keeper = Memory()
    async with Run(time, CHOICES[name], keeper=keeper) as run:
        await run.round()
        await run.round()
    resumed = Run(time, CHOICES[name], state=keeper.kept[2])
    resumed.coordinator.begin_with(resumed.change())
    assert resumed.machine.policy.workers == OTHERS
    assert resumed.machine.state.absent == frozenset()
    async with resumed:
        await resumed.round()
        await resumed.round()
    assert resumed.records[0].membership["gone"] == {"w03": "drained"}
    assert resumed.records[1].membership is None
    assert resumed.records[1].pushes.keys() <= {*OTHERS}


async def test_more_workers_have_rows_of_their_own(time):
    async with Run(time) as run:
        await run.follow(run.change((*NAMES, "w04", "w05"), f=0))
        await run.round()
        offered = [await run.offer(name, 1.0) for name in run.machine.policy.workers]
        assert len({slot.worker for slot in offered}) == 6
        for slot in offered:
            assert await run.coordinator.complete(slot) is None


async def test_more_workers_have_rows_on_the_disk_or_do_not_come(time, tmp_path, monkeypatch):
    async with Run(time, rows_folder=tmp_path) as run:
        more, before = run.change((*NAMES, "w04", "w05"), f=0), run.coordinator.row_bytes
        with monkeypatch.context() as full:
            full.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=7))
            with pytest.raises(NoRoom, match=r"for 2 vectors\. Found 7 bytes"):
                await run.coordinator.make_room(more)
        assert run.machine.policy.following is None
        assert run.coordinator.row_bytes == before
        await run.follow(more)
        assert run.coordinator.row_bytes == before * 6 // 4
        await run.round()
        await run.round()
        assert run.records[-1].pushes.keys() == {*NAMES, "w04", "w05"}


async def test_an_expelled_worker_leaves_nothing_behind(time):
    async with Run(time, CHOICES["latest vectors"]) as run:
        await run.round()
        await run.round()
        await run.follow(run.change(NAMES[:3], f=0, expelled=("w03",)))
        assert await run.offer("w03", 1.0) in (Refusal.NOT_INVITED, Refusal.UNKNOWN_WORKER)
        await run.round()
        await run.round()
    assert all("w03" not in record.weights for record in run.records[3:])
    assert not any(record.dropped for record in run.records)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"row_source": DeltaSum(NAMES, D)}, "of deltas only the sum is kept"),
        ({"window": True}, "rows lie as the workers of the start have them"),
    ],
)
async def test_workers_stay_where_rows_are_bound_to_them(time, options, said):
    run = Run(time, **options)
    with pytest.raises(ValueError, match=said):
        await run.follow(run.change())
    assert run.machine.policy.following is None

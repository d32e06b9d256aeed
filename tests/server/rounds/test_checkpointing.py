"""States that a coordinator gives to its keeper, and coordinators that go on from them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
import torch
from tests.extent import patience
from tests.server.rounds.kit import D, Driven, Memory
from torch import Tensor

from varangian.aggregators import AggregationError, Aggregator, Gram, Mean
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.state import RunPolicy, Selection
from varangian.server.rows.latest import LatestVectors
from varangian.server.rows.source import RowSource
from varangian.server.training.ema import Average, Ema
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Adam

NAMES = ("w00", "w01", "w02", "w03")
ROUNDS = 6


class Run(Driven):
    """A run with all that a server remembers."""

    def __init__(
        self, time, choice: Selection, rule=None, quorum=1, rounds=ROUNDS, shortfall="wait", **options
    ):
        parameters = torch.ones(D)
        source: RowSource | None = None
        if isinstance(choice, LongestAbsent):
            source = LatestVectors.of(NAMES, D, choice.k)
        super().__init__(
            time,
            RunPolicy(NAMES, rounds, quorum, 10.0, shortfall, 0, selection=choice),
            Learner(
                parameters,
                Aggregator(rule or Mean(), f=0),
                Adam(lr=0.1),
                rounds=rounds,
                seed=1,
                average=Average(Ema(decay=0.9, reference_batch=4), parameters),
            ),
            row_source=source,
            **options,
        )

    async def round(self, *silent: str) -> None:
        """One round, in which these do not answer although they ask."""
        round, by_invitation = self.coordinator.round, self.machine.by_invitation
        pulls = {name: self.coordinator.pulls.ask(name, round - 1) for name in NAMES if by_invitation}
        for name in NAMES:
            if name in silent or (by_invitation and pulls[name].answer is None):
                continue
            await self.push(name, float(torch.tensor([round, int(name[1:])]).float().add(1).prod()))
        await self.recorded(round + 1)

    async def recorded(self, count: int) -> None:
        while len(self.records) < count - self.coordinator.first:
            await asyncio.sleep(0)


CHOICES: dict[str, Selection] = {
    "sync": Everyone(),
    "latest vectors": LongestAbsent(k=2),
}


@pytest.mark.parametrize("name", CHOICES)
async def test_a_run_goes_on_from_each_border_with_the_same_bits(time, name: str):
    keeper = Memory()
    async with Run(time, CHOICES[name], keeper=keeper) as straight:
        for _ in range(ROUNDS):
            await straight.round()
        await straight.ended()
    assert keeper.asked == [*keeper.kept] == [*range(1, ROUNDS + 1)]
    for border in range(1, ROUNDS):
        async with Run(time, CHOICES[name], state=keeper.kept[border]) as resumed:
            assert (resumed.coordinator.round, resumed.coordinator.first) == (border, border)
            for _ in range(border, ROUNDS):
                await resumed.round()
            await resumed.ended()
        assert resumed.learner.digest() == straight.learner.digest()
        assert [record.weights for record in resumed.records] == [
            record.weights for record in straight.records[border:]
        ]
        average = resumed.learner.average
        assert average is not None
        assert torch.equal(average.parameters, straight.learner.average.parameters)


@pytest.mark.parametrize("name", CHOICES)
async def test_workers_hear_of_the_end_once_its_state_is_on_the_disk(time, name: str):
    keeper = Memory(every=1000, written=threading.Event())  # nothing but the end is due
    async with Run(time, CHOICES[name], keeper=keeper, rounds=1) as run:
        asked = asyncio.create_task(run.coordinator.snapshot(0, 1e9))
        await run.round()
        late = run.coordinator.pulls.ask(NAMES[1], 0) if run.machine.by_invitation else None
        while 1 not in keeper.kept:
            await asyncio.sleep(0)
        assert not asked.done()
        assert late is None or not late.answered
        keeper.written.set()
        ended = await asked
        assert (ended.finished, ended.reason) == (True, await run.ended())
        assert late is None or late.answer == ended


@pytest.mark.parametrize("name", CHOICES)
async def test_a_server_that_goes_on_after_the_last_round_tells_workers_so(time, name: str):
    keeper = Memory()
    async with Run(time, CHOICES[name], keeper=keeper) as straight:
        for _ in range(ROUNDS):
            await straight.round()
        reason = await straight.ended()
    async with Run(time, CHOICES[name], state=keeper.kept[ROUNDS], keeper=Memory()) as resumed:
        assert resumed.coordinator.began_at_the_end
        assert await resumed.ended() == reason
        found = await resumed.coordinator.snapshot(-1, 1e9)
        assert (found.finished, found.reason, found.digest) == (
            True,
            reason,
            straight.coordinator.model.digest,
        )
        if resumed.machine.by_invitation:
            assert resumed.coordinator.pulls.ask(NAMES[1], -1).answer.finished
    assert resumed.records == []


async def test_what_is_pulled_after_a_resumption_is_the_model_that_was_kept(time):
    keeper = Memory()
    async with Run(time, Everyone(), keeper=keeper) as run:
        await run.round()
        before = (await run.opened(1)).digest
    async with Run(time, Everyone(), state=keeper.kept[1]) as resumed:
        opened = await resumed.coordinator.snapshot(-1, 1e9)
        assert (opened.round, opened.digest) == (1, before)


async def test_a_vector_that_waits_for_a_later_round_is_kept_with_its_row(time):
    keeper = Memory()
    choice = BufferSelection(2, tau=3)
    async with Run(time, choice, keeper=keeper, row_slots=4) as run:
        for name in NAMES[:3]:
            run.coordinator.pulls.ask(name, -1)
        slot = await run.offer("w02", 7.0)
        await run.push("w00", 1.0)
        await run.push("w01", 2.0)
        await run.coordinator.complete(slot)  # while round 0 is being aggregated
        await run.recorded(1)
        run.stop.set()
        await run.ended()
    (state,) = keeper.kept.values()
    assert state["held"].keys() == {"w02"}
    async with Run(time, choice, state=state, row_slots=4) as resumed:
        resumed.coordinator.pulls.ask("w00", 0)
        await resumed.push("w00", 1.0)
        await resumed.recorded(2)
    (record,) = resumed.records
    assert record.ages == {"w00": 0, "w02": 1}


async def test_a_stop_keeps_the_state_in_which_the_open_round_began(time):
    keeper = Memory(every=100)
    async with Run(time, LongestAbsent(k=2), keeper=keeper) as run:
        await run.round()
        pulls = [run.coordinator.pulls.ask(name, 0) for name in NAMES]
        selected = [pull.worker for pull in pulls if pull.answer is not None]
        assert await run.push(selected[0], 5.0) is None
        run.stop.set()
        await run.ended()
    assert (keeper.kept[1]["held"], keeper.kept[1]["machine"]["held"]) == ({}, {})
    async with Run(time, LongestAbsent(k=2), state=keeper.kept[1]) as resumed:
        pulls = [resumed.coordinator.pulls.ask(name, 0) for name in NAMES]
        assert [pull.worker for pull in pulls if pull.answer is not None] == selected


async def test_a_run_that_is_stopped_before_its_first_round_keeps_nothing(time):
    keeper = Memory()
    async with Run(time, Everyone(), keeper=keeper) as run:
        await run.push("w00", 1.0)
    assert keeper.kept == {}


async def test_a_run_that_ends_by_itself_is_kept_once(time):
    keeper = Memory(every=100)
    async with Run(time, Everyone(), rounds=1, keeper=keeper) as run:
        await run.round()
        await run.ended()
    assert (keeper.asked, [*keeper.kept]) == ([1], [1])


class TestGrace:
    """A stop waits for the open round, if somebody has pushed for it."""

    @staticmethod
    def begin(time, keeper: Memory) -> Run:
        run = Run(time, Everyone(), keeper=keeper, quorum=4)
        run.coordinator.run = lambda stop, begun=run.coordinator.run: begun(stop, lambda: 5.0)
        return run

    async def test_the_round_that_was_open_is_completed_and_no_other(self, time):
        keeper = Memory(every=100)
        async with self.begin(time, keeper) as run:
            await run.round()
            for name in NAMES[:3]:
                await run.push(name, 1.0)
            run.stop.set()
            await asyncio.sleep(0.01)
            assert not run.task.done()
            await run.push("w03", 1.0)
            assert await run.ended() == "stopped on request"
        assert [*keeper.kept] == [2]
        assert len(run.records) == 2

    async def test_it_is_not_waited_for_longer_than_that(self, time):
        keeper = Memory(every=100)
        async with self.begin(time, keeper) as run:
            await run.round()
            await run.push("w00", 1.0)
            run.stop.set()
            while time.now + 5.0 not in [timer.at for timer in time.waiting()]:
                await asyncio.sleep(0.001)
            time.advance(4.9)
            await asyncio.sleep(0.01)
            assert not run.task.done()
            time.advance(0.2)
            await run.ended()
        assert [*keeper.kept] == [1]

    async def test_nobody_is_waited_for_who_has_left(self, time):
        keeper = Memory(every=100)
        async with self.begin(time, keeper) as run:
            await run.round()
            await run.push("w00", 1.0)
            run.stop.set()
            while time.now + 5.0 not in [timer.at for timer in time.waiting()]:
                await asyncio.sleep(0.001)
            for name in NAMES[1:]:
                assert not run.task.done()
                run.coordinator.absent(name)
            await run.ended()
        assert [*keeper.kept] == [1]

    async def test_nothing_is_waited_for_where_nobody_has_pushed(self, time):
        keeper = Memory(every=100)
        async with self.begin(time, keeper) as run:
            await run.round()
            run.stop.set()
            await run.ended()
        assert [*keeper.kept] == [1]


@dataclass(frozen=True)
class Picky:
    """The mean, but for the second time that it is asked."""

    asked: list[int] = field(default_factory=list)

    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        self.asked.append(len(gram))
        if len(self.asked) == 2:
            raise AggregationError("these rows")
        return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)


async def test_the_border_after_a_round_without_an_update_is_kept_too(time):
    keeper = Memory()
    async with Run(time, LongestAbsent(k=2), keeper=keeper, rule=Picky()) as run:
        await run.round()
        await run.round()
        await run.round()
    assert [record.skipped is None for record in run.records] == [True, False, True]
    assert {*keeper.kept} == {1, 2, 3}


async def test_vectors_of_a_revoked_worker_are_forgotten_before_the_state_is_kept(time):
    keeper = Memory()
    async with Run(time, LongestAbsent(k=2), keeper=keeper) as run:
        pulls = [run.coordinator.pulls.ask(name, -1) for name in NAMES]
        pushers = [pull.worker for pull in pulls if pull.answer is not None]
        for name in pushers:
            await run.push(name, 1.0)
        while not run.records:
            run.coordinator.withdraw(pushers[0], "certificate revoked")
            await asyncio.sleep(0)
    assert {*keeper.kept[1]["rows"]["latest"]["vectors"]} == {*pushers[1:]}


async def test_pulls_are_answered_while_a_state_is_copied(time):
    began, allowed = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        assert allowed.wait(patience(20))

    async with Run(time, Everyone(), keeper=Memory(during=wait)) as run:
        for name in NAMES:
            await run.push(name, 1.0)
        await asyncio.to_thread(began.wait, patience(20))
        assert (await run.opened(1)).round == 1
        assert await run.push("w00", 1.0) is None
        allowed.set()
        await run.round("w00")
    assert len(run.records) == 2


class TestConnected:
    """A run whose workers go on with it: they say when nobody works."""

    async def test_the_keeper_is_given_a_state_when_the_workers_say_so(self, time):
        keeper = Memory(every=2)
        async with Run(time, Everyone(), keeper=keeper, connected=True, in_place=True) as run:
            for round in range(2):
                for name in NAMES:
                    run.coordinator.hand_over(name, round, torch.full((D,), 1.0 + round))
                await run.recorded(round + 1)
            await run.coordinator.until_idle()
            assert run.coordinator.checkpointing.due
            assert keeper.kept == {}
            run.coordinator.hand_over("w00", 2, torch.full((D,), 9.0))
            exact = run.machine.state
            await run.coordinator.keep({"simulation": {"now": 7.0}})
            assert not run.coordinator.checkpointing.due
        assert keeper.more == [{"simulation": {"now": 7.0}}]
        resumed = Run(time, Everyone(), state=keeper.kept[2], connected=True, in_place=True)
        assert resumed.machine.state == exact
        async with resumed:
            for name in NAMES[1:]:
                resumed.coordinator.hand_over(name, 2, torch.full((D,), 9.0))
            while not resumed.records:
                await asyncio.sleep(0)
        assert set(resumed.records[0].weights) == {*NAMES}

    async def test_pulls_go_on_as_the_machine_knows_of_them(self, time):
        keeper = Memory()
        options = {"connected": True, "in_place": True, "quorum": 2}
        async with Run(time, LongestAbsent(k=2), keeper=keeper, **options) as run:
            await run.coordinator.until_idle()
            run.machine.state = run.machine.state.replace(round=1, first=0)
            for name in NAMES:
                run.coordinator.pulls.ask(name, 0)
            await run.coordinator.keep()
        resumed = Run(time, LongestAbsent(k=2), state=keeper.kept[1], **options)
        pulls = resumed.coordinator.pulls.restore(NAMES[2:], NAMES[:2])
        async with resumed:
            await resumed.coordinator.until_idle()
            answers = {name: pull.answer for name, pull in pulls.items()}
            assert [name for name, answer in answers.items() if answer is None] == ["w02", "w03"]
            assert answers["w00"] is resumed.coordinator.model
            for name in NAMES[:2]:
                resumed.coordinator.hand_over(name, 1, torch.ones(D))
            while not resumed.records:
                await asyncio.sleep(0)
            await resumed.coordinator.until_idle()
            assert pulls["w02"].answer is resumed.coordinator.model

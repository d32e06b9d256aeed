"""Work that is done before a round closes: when it begins, and that nobody can tell from the result."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable

import pytest
import torch
from tests.extent import patience
from torch import Tensor

from varangian.aggregators import Aggregator, Krum, Mean, aggregator_from
from varangian.aggregators.kernels import accumulate, native
from varangian.aggregators.streaming.incremental import Incremental
from varangian.protos.encoding import encode_vector
from varangian.server.observability.record import RoundRecord
from varangian.server.protocol.events import RoundPolicy
from varangian.server.protocol.synchronous import RoundMachine
from varangian.server.rounds.coordinator import Coordinator, Slot
from varangian.server.rounds.overlap import STARTS
from varangian.server.training.learner import Learner
from varangian.server.training.optimizer import Sgd

SLICE = 1 << 14
BLOCK = SLICE * 4
D = 3 * BLOCK + 77
N, F = 7, 1
NAMES = tuple(f"w{i:02}" for i in range(N))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(accumulate, "SLICE", SLICE)
    monkeypatch.setattr(native, "SLICE", SLICE)


@pytest.fixture
def attempts(monkeypatch) -> list[Incremental]:
    """All that were begun."""
    found: list[Incremental] = []
    advance = Incremental.advance

    def spied(self: Incremental, rows, to: int) -> None:
        if self not in found:
            found.append(self)
        advance(self, rows, to)

    monkeypatch.setattr(Incremental, "advance", spied)
    return found


def vector(worker: str, round: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * round + int(worker[1:]))
    return torch.randn(D, generator=generator)


class Run:
    """A driver at work; each worker pushes its own vector, in pieces."""

    def __init__(self, time, aggregator: Aggregator | None = None, rounds=1, **policy):
        agreed = {"quorum": N - F, "deadline": 10.0, "shortfall": "wait"} | policy
        self.time = time
        self.machine = RoundMachine(RoundPolicy(NAMES, rounds=rounds, f=F, **agreed))
        rule = aggregator or Aggregator(Krum(f=F))
        self.learner = Learner(torch.ones(D), rule, Sgd(lr=1.0), rounds=rounds, seed=1)
        self.records: list[RoundRecord] = []
        self.stop = asyncio.Event()
        self.coordinator = Coordinator(
            self.machine,
            self.learner,
            evaluate=lambda parameters: (0.0, 0.0),
            evaluate_every=100,
            observe=self.records.append,
            clock=time.clock,
        )

    async def __aenter__(self):
        self.task = asyncio.create_task(self.coordinator.run(self.stop))
        return self

    async def __aexit__(self, *error):
        self.stop.set()
        await self.task

    async def offer(self, worker: str) -> Slot:
        slot = await self.coordinator.offer(worker, self.coordinator.round, worker.encode())
        assert isinstance(slot, Slot)
        return slot

    async def offers(self, workers=NAMES) -> dict[str, Slot]:
        return {worker: await self.offer(worker) for worker in workers}

    async def put(self, slots: dict[str, Slot], to: int, vectors: dict[str, Tensor] | None = None) -> None:
        for worker, slot in slots.items():
            sent = (vectors or {}).get(worker, vector(worker, slot.round))
            await slot.put(encode_vector(sent)[4 * slot.columns : 4 * to])

    async def complete(self, slots: dict[str, Slot]) -> list[object]:
        await self.put(slots, D)
        return [await self.coordinator.complete(slot) for slot in slots.values()]

    async def ended(self) -> str:
        return await asyncio.wait_for(asyncio.shield(self.task), patience(100))

    async def idle(self) -> None:
        """Until the thread has done all that was asked of it."""
        while (task := self.coordinator._intake._task) is not None and not task.done():
            await asyncio.sleep(0)


def plain(aggregator: Aggregator, sent: dict[str, Tensor], faults: dict[str, str] | None = None) -> str:
    """The digest of the parameters after one step with these vectors and nothing begun early."""
    learner = Learner(torch.ones(D), aggregator, Sgd(lr=1.0), rounds=1, seed=1)
    learner.step(0, sent, faults or {})
    return learner.digest()


def in_loop(test: Callable[..., Awaitable[None]]):
    @functools.wraps(test)
    def wrapped(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), patience(100)))

    return wrapped


@in_loop
@pytest.mark.parametrize("spec", ["krum", "median", "mean", "flag", {"mix": ["nnm"], "rule": "median"}])
async def test_blocks_are_done_when_everyone_has_passed_them(time, attempts, spec):
    aggregator = aggregator_from(spec, "aggregator", f=F)
    async with Run(time, aggregator) as run:
        slots = await run.offers()
        ahead = {"w00": slots["w00"]}
        await run.put(ahead, D)
        await run.idle()
        assert attempts == []
        await run.put(slots, BLOCK + 5)
        await run.idle()
        assert [attempt.columns for attempt in attempts] == [BLOCK]
        await run.put(slots, 3 * BLOCK)
        await run.idle()
        assert [attempt.columns for attempt in attempts] == [3 * BLOCK]
        assert await run.complete(slots) == [None] * N
        await run.ended()
    assert [attempt.columns for attempt in attempts] == [D]
    assert run.learner.digest() == plain(aggregator, {worker: vector(worker) for worker in NAMES})


@in_loop
async def test_nothing_is_begun_before_everyone_is_there(time, attempts):
    async with Run(time) as run:
        early = await run.offers(NAMES[:-1])
        await run.put(early, 2 * BLOCK)
        await run.idle()
        assert attempts == []
        late = await run.offers(NAMES[-1:])
        await run.put(late, BLOCK)
        await run.idle()
        assert [attempt.columns for attempt in attempts] == [BLOCK]
        await run.complete(early | late)
        await run.ended()
    assert len(attempts) == 1


@in_loop
async def test_the_time_until_the_deadline_is_used(time, attempts):
    aggregator = Aggregator(Mean())
    async with Run(time, aggregator) as run:
        await run.complete(await run.offers(NAMES[:-1]))
        await run.idle()
        assert [attempt.columns for attempt in attempts] == [D]
        time.advance(10)
        await run.ended()
    assert len(attempts) == 1
    assert run.learner.digest() == plain(aggregator, {worker: vector(worker) for worker in NAMES[:-1]})


@in_loop
async def test_someone_who_is_late_is_a_reason_to_begin_anew(time, attempts):
    aggregator = Aggregator(Mean())
    async with Run(time, aggregator) as run:
        await run.complete(await run.offers(NAMES[:-1]))
        await run.idle()
        late = await run.offers(NAMES[-1:])
        await run.put(late, 2 * BLOCK)
        await run.idle()
        assert [attempt.columns for attempt in attempts] == [D, 2 * BLOCK]
        await run.complete(late)
        await run.ended()
    assert run.learner.digest() == plain(aggregator, {worker: vector(worker) for worker in NAMES})


@in_loop
@pytest.mark.parametrize("spec", ["krum", "median"])
async def test_an_upload_that_dies_and_comes_again_with_other_numbers(time, attempts, spec):
    aggregator = aggregator_from(spec, "aggregator", f=F)
    async with Run(time, aggregator) as run:
        slots = await run.offers()
        await run.put(slots, BLOCK, {"w03": -vector("w03")})
        await run.idle()
        await run.coordinator.release(slots["w03"])
        slots["w03"] = await run.offer("w03")
        await run.put(slots, 2 * BLOCK)
        await run.idle()
        assert await run.complete(slots) == [None] * N
        await run.ended()
    assert len(attempts) == 2
    assert run.learner.digest() == plain(aggregator, {worker: vector(worker) for worker in NAMES})


@in_loop
@pytest.mark.parametrize("spec", ["krum", "trimmed_mean"])
async def test_a_vector_that_is_not_finite_is_left_out_at_once(time, attempts, spec):
    aggregator = aggregator_from(spec, "aggregator", f=F)
    bad = vector("w06")
    bad[BLOCK + 3] = torch.nan
    honest = {worker: vector(worker) for worker in NAMES[:-1]}
    async with Run(time, aggregator) as run:
        slots = await run.offers()
        await run.put(slots, BLOCK)
        await run.idle()
        await run.put(slots, 2 * BLOCK, {"w06": bad})
        await run.idle()
        before = [attempt.columns for attempt in attempts if not attempt.lost]
        assert before == [2 * BLOCK]
        answers = await run.complete(slots)
        await run.ended()
    assert answers == [None] * (N - 1) + ["not finite"]
    assert [attempt.columns for attempt in attempts if not attempt.lost] == [D]
    assert run.learner.digest() == plain(aggregator, honest, {"w06": "not finite"})


@in_loop
async def test_whoever_comes_and_goes_does_not_keep_the_thread_busy(time, attempts):
    async with Run(time) as run:
        slots = await run.offers()
        for _ in range(STARTS + 3):
            await run.put(slots, BLOCK)
            await run.idle()
            await run.coordinator.release(slots["w03"])
            slots["w03"] = await run.offer("w03")
        assert len(attempts) == STARTS
        await run.complete(slots)
        await run.ended()
    wanted = plain(Aggregator(Krum(f=F)), {worker: vector(worker) for worker in NAMES})
    assert run.learner.digest() == wanted


@in_loop
@pytest.mark.parametrize("again", [False, True])
async def test_a_vector_that_is_withdrawn_leaves_what_was_begun(time, attempts, again):
    """It was a part of all columns; another one of the same worker must not be taken for it."""
    aggregator, bad = Aggregator(Mean()), torch.full((D,), 1e4)
    sent = {worker: vector(worker) for worker in NAMES if again or worker != "w05"}
    async with Run(time, aggregator) as run:
        slots = await run.offers()
        for _ in range(STARTS - 1):
            await run.put(slots, BLOCK, {"w05": bad})
            await run.idle()
            await run.coordinator.release(slots["w04"])
            slots["w04"] = await run.offer("w04")
        await run.put(slots, 2 * BLOCK, {"w05": bad})
        await run.put({worker: slots[worker] for worker in NAMES[:-1]}, D, {"w05": bad})
        await run.idle()
        last = {"w06": slots.pop("w06")}
        assert await run.complete(slots) == [None] * (N - 1)
        assert (len(attempts), attempts[-1].columns) == (STARTS, 2 * BLOCK)
        run.coordinator.withdraw("w05", "certificate revoked")
        if again:
            assert await run.complete(await run.offers(["w05"])) == [None]
        assert await run.complete(last) == [None]
        await run.ended()
    assert run.learner.digest() == plain(aggregator, sent)
    (record,) = run.records
    assert (record.revoked, record.dropped, record.missing) == (() if again else ("w05",), {}, ())


@in_loop
async def test_every_round_begins_from_nothing(time, attempts):
    async with Run(time, rounds=3) as run:
        for round in range(3):
            await run.coordinator.snapshot(round - 1, 1e9)
            slots = await run.offers()
            await run.put(slots, BLOCK)
            await run.idle()
            await run.complete(slots)
        await run.ended()
    assert [attempt.columns for attempt in attempts] == [D] * 3
    again = Learner(torch.ones(D), Aggregator(Krum(f=F)), Sgd(lr=1.0), rounds=3, seed=1)
    for round in range(3):
        again.step(round, {worker: vector(worker, round) for worker in NAMES}, {})
    assert run.learner.digest() == again.digest()


@in_loop
async def test_an_upload_outlives_its_round_and_counts_in_none(time, attempts):
    async with Run(time, rounds=2) as run:
        slots = await run.offers()
        await run.put(slots, BLOCK)
        stalled = slots.pop("w06")
        await run.complete(slots)
        time.advance(10)
        await run.coordinator.snapshot(0, 1e9)
        slots = await run.offers(NAMES[:-1])
        await run.coordinator.release(stalled)
        await run.complete(slots)
        time.advance(10)
        await run.ended()
    assert [record.missing for record in run.records] == [("w06",), ("w06",)]


@in_loop
async def test_the_loop_answers_while_blocks_are_done(time, monkeypatch):
    began, allowed = threading.Event(), threading.Event()
    advance = Incremental.advance

    def slow(self: Incremental, rows, to: int) -> None:
        began.set()
        assert allowed.wait(patience(20))
        advance(self, rows, to)

    monkeypatch.setattr(Incremental, "advance", slow)
    async with Run(time) as run:
        slots = await run.offers()
        await run.put(slots, BLOCK)
        assert await asyncio.to_thread(began.wait, 20)
        await run.put(slots, 2 * BLOCK)
        assert run.coordinator.status().present == NAMES
        allowed.set()
        await run.complete(slots)
        await run.ended()


@in_loop
async def test_an_error_on_the_way_ends_the_run_and_is_raised(time, monkeypatch):
    def broken(self: Incremental, rows, to: int) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Incremental, "advance", broken)
    run = await Run(time).__aenter__()
    slots = await run.offers()
    await run.put(slots, BLOCK)
    await run.idle()
    await run.complete(slots)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await run.ended()

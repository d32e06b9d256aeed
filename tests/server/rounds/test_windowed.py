"""Rounds in a window: the bits of rounds with all rows, whoever fails on the way."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.extent import patience
from tests.server.rounds.kit import Driven, Memory
from torch import Tensor

from varangian.aggregators import aggregator_from
from varangian.aggregators.kernels import accumulate, native
from varangian.aggregators.streaming.stream import Stream, streams
from varangian.protos.payloads.encoding import TORCH, Encoding, encode_vector, rounding_seed
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.deadlines import AutoDeadline
from varangian.server.protocol.events import Refusal
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Overtaken, Slot
from varangian.server.rounds.windowed import BLOCKS
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

SLICE = 1 << 12
BLOCK = SLICE * 4
D = (BLOCKS + 3) * BLOCK + 77
N, F = 5, 1
NAMES = tuple(f"w{i:02}" for i in range(N))
PIECE = 3 * BLOCK // 2
HONEST = NAMES[:-1]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(accumulate, "SLICE", SLICE)
    monkeypatch.setattr(native, "SLICE", SLICE)


def vector(worker: str, round: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * round + int(worker[1:]))
    return torch.randn(D, generator=generator)


class Thread(ThreadPoolExecutor):
    """Knows how often it was asked for something."""

    def __init__(self):
        super().__init__(1, initializer=torch.set_num_threads, initargs=(1,))
        self.asked = 0

    def submit(self, *args, **kwargs):
        self.asked += 1
        return super().submit(*args, **kwargs)


class Run(Driven):
    """A run with a window, and workers that push in pieces, all at the same time."""

    def __init__(self, time, spec: object = "median", rounds=1, rows="float32", kept=None, **policy):
        agreed = {"quorum": N - F, "deadline": 40.0, "shortfall": "wait"} | policy
        aggregator = aggregator_from(spec, "aggregator", f=F)
        self.slots: dict[str, Slot] = {}
        self.thread = Thread()
        super().__init__(
            time,
            RunPolicy(NAMES, rounds=rounds, f=F, **agreed, selection=Everyone()),
            Learner(torch.ones(D), aggregator, Sgd(lr=1.0), rounds=rounds, seed=1),
            executor=self.thread,
            window=True,
            rows=rows,
            **(kept or {}),
        )

    async def __aexit__(self, *error):
        await super().__aexit__(*error)
        self.thread.shutdown()

    async def offer(self, worker: str) -> Slot:
        slot = await self.coordinator.offer(worker, self.coordinator.round, worker.encode())
        assert isinstance(slot, Slot), slot
        self.slots[worker] = slot
        return slot

    async def send(self, slot: Slot, until: int = D, sent: Tensor | None = None) -> object:
        """The answer, or how far it got when it was to stop before the end."""
        payload = encode_vector(vector(slot.worker, slot.round) if sent is None else sent)
        try:
            while slot.columns < until:
                await slot.put(payload[4 * slot.columns : 4 * min(slot.columns + PIECE, until)])
                await asyncio.sleep(0)
        except Overtaken as overtaken:
            await self.coordinator.release(slot)
            return overtaken.refusal
        return slot.columns if until < D else await self.coordinator.complete(slot)

    async def push(self, worker: str, sent: Tensor | None = None) -> object:
        """As a worker does: again when it is told so."""
        while (answer := await self.send(await self.offer(worker), sent=sent)) is Refusal.RESTARTED:
            pass
        return answer

    def all(self, workers=NAMES) -> dict[str, asyncio.Task[object]]:
        return {worker: asyncio.create_task(self.push(worker)) for worker in workers}

    async def quiet(self) -> None:
        """Until everything waits for a clock or a worker: the thread has done all that was asked."""
        asked = -1
        while asked != self.thread.asked:
            await asyncio.get_running_loop().run_in_executor(self.thread, int)
            asked = self.thread.asked
            for _ in range(100):
                await asyncio.sleep(0)


def plain(spec: object, workers=NAMES, faults: dict[str, str] | None = None, rounds=1) -> str:
    """The digest of the parameters after rounds with all rows in memory."""
    aggregator = aggregator_from(spec, "aggregator", f=F)
    learner = Learner(torch.ones(D), aggregator, Sgd(lr=1.0), rounds=rounds, seed=1)
    for round in range(rounds):
        learner.step(round, {worker: vector(worker, round) for worker in workers}, faults or {})
    return learner.digest()


@pytest.mark.parametrize("spec", ["median", "mean", "trimmed_mean", "meamed", "phocas", "sign_majority"])
async def test_the_same_bits_as_with_all_rows(time, spec):
    async with Run(time, spec, rounds=2) as run:
        for round in range(2):
            await run.coordinator.snapshot(round - 1, 1e9)
            answers = await asyncio.gather(*run.all().values())
            assert answers == [None] * N
        assert await run.ended() == "all 2 rounds are done"
    assert run.learner.digest() == plain(spec, rounds=2)
    assert run.records[0].missing == ()
    assert (run.records[0].weights is None) == (spec != "mean")


async def test_nobody_runs_ahead_of_the_window(time):
    async with Run(time) as run:
        ahead = {worker: asyncio.create_task(run.push(worker)) for worker in HONEST}
        await run.quiet()
        slot = await run.offer(NAMES[-1])
        await run.quiet()
        taken = {worker: run.slots[worker].columns for worker in HONEST}
        assert set(taken.values()) == {BLOCKS * BLOCK}
        assert not any(run.slots[worker].has_room() for worker in HONEST)
        assert await run.send(slot) is None
        assert await asyncio.gather(*ahead.values()) == [None] * len(HONEST)
        await run.ended()
    assert run.learner.digest() == plain("median")


async def test_nobody_counts_before_all_do(time):
    async with Run(time) as run:
        pushes = run.all(HONEST)
        last = await run.offer(NAMES[-1])
        assert await run.send(last, until=D - 1) == D - 1
        await run.quiet()
        assert not any(push.done() for push in pushes.values())
        assert run.coordinator.status().counted == ()
        assert await run.send(last) is None
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)


@pytest.mark.parametrize("spec", ["median", "mean"])
async def test_an_upload_that_dies_makes_the_others_push_again(time, spec):
    async with Run(time, spec) as run:
        pushes = run.all(HONEST)
        dying = await run.offer(NAMES[-1])
        await run.send(dying, until=4 * BLOCK)
        await run.quiet()
        await run.coordinator.release(dying)
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        assert await run.coordinator.offer(NAMES[-1], 0, b"again") in {Refusal.STALE, Refusal.FINISHED}
        await run.ended()
    assert run.records[0].missing == (NAMES[-1],)
    assert run.learner.digest() == plain(spec, HONEST)


@pytest.mark.parametrize("sent", [4 * BLOCK, D])
async def test_an_upload_that_is_withdrawn_makes_the_others_push_again(time, sent):
    async with Run(time) as run:
        pushes = run.all(HONEST)
        bad = asyncio.create_task(run.send(await run.offer(NAMES[-1]), sent, torch.full((D,), 1e4)))
        while run.slots[NAMES[-1]].columns < min(sent, 4 * BLOCK):
            await asyncio.sleep(0)
        run.coordinator.withdraw(NAMES[-1], "certificate revoked")
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        assert await bad in (sent, Refusal.UNOFFERED)
        await run.ended()
    assert (run.records[0].revoked, run.records[0].missing) == ((NAMES[-1],), ())
    assert run.learner.digest() == plain("median", HONEST)


async def test_whoever_dies_at_the_very_end_costs_an_attempt_as_well(time):
    async with Run(time) as run:
        pushes = run.all(HONEST)
        dying = await run.offer(NAMES[-1])
        await run.send(dying, until=D - 1)
        await run.quiet()
        await run.coordinator.release(dying)
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        await run.ended()
    assert run.learner.digest() == plain("median", HONEST)


async def test_a_number_that_is_none_is_proof_once_its_digest_is_right(time):
    bad = vector(NAMES[-1])
    bad[5 * BLOCK + 3] = torch.nan
    async with Run(time, "trimmed_mean") as run:
        pushes = run.all(HONEST)
        answer = await run.send(await run.offer(NAMES[-1]), sent=bad)
        assert answer == "not finite"
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        await run.ended()
    assert run.records[0].dropped == {NAMES[-1]: "not finite"}
    wanted = plain("trimmed_mean", HONEST, {NAMES[-1]: "not finite"})
    assert run.learner.digest() == wanted


@pytest.mark.parametrize("late", [False, True], ids=["while others come", "after the others began"])
async def test_the_round_waits_for_the_digest_of_a_vector_that_is_not_finite(time, late: bool):
    bad = vector(NAMES[-1])
    bad[5 * BLOCK + 3 if late else 0] = torch.nan
    async with Run(time, "trimmed_mean") as run:
        slot, pushes = await run.offer(NAMES[-1]), run.all(HONEST)
        await run.quiet()
        assert await run.send(slot, until=D - 1, sent=bad) == D - 1
        await run.quiet()
        assert not any(push.done() for push in pushes.values())
        assert await run.send(slot, sent=bad) == "not finite"
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        await run.ended()
    assert run.learner.digest() == plain("trimmed_mean", HONEST, {NAMES[-1]: "not finite"})


async def test_that_digest_is_waited_for_no_longer_than_a_worker_that_is_not_there(time):
    async with Run(time, "trimmed_mean") as run:
        slot, pushes = await run.offer(NAMES[-1]), run.all(HONEST)
        assert await run.send(slot, until=D - 1, sent=torch.full((D,), torch.nan)) == D - 1
        await run.quiet()
        assert not any(push.done() for push in pushes.values())
        time.advance(10.0)
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        await run.ended()
        await run.coordinator.release(slot)
    assert (run.records[0].dropped, run.records[0].missing) == ({}, (NAMES[-1],))


async def test_a_number_that_the_line_has_spoilt_spends_nothing(time):
    bad = vector(NAMES[-1])
    bad[5 * BLOCK + 3] = torch.nan
    async with Run(time, "trimmed_mean") as run:
        pushes = run.all(HONEST)
        slot = await run.offer(NAMES[-1])
        assert await run.send(slot, until=D - 1, sent=bad) == D - 1
        await run.coordinator.release(slot)  # the digest is wrong
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        await run.ended()
    assert (run.records[0].dropped, run.records[0].missing) == ({}, (NAMES[-1],))
    assert run.learner.digest() == plain("trimmed_mean", HONEST)


async def test_a_fault_that_is_proved_after_the_members_are_fixed_changes_the_rule(time):
    bad = torch.full((D,), torch.nan)
    async with Run(time, "trimmed_mean") as run:
        last = await run.offer(NAMES[-1])
        assert await run.send(last, until=D - 1, sent=bad) == D - 1
        pushes = run.all(HONEST[1:])
        first = await run.offer(HONEST[0])
        nearly = asyncio.create_task(run.send(first, until=D - 1))
        await run.quiet()
        time.advance(10.0)  # a quorum is enough from now on
        assert await nearly == D - 1
        assert await run.send(last, sent=bad) == "not finite"
        assert await run.send(first) is Refusal.RESTARTED
        assert await run.push(HONEST[0]) is None
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST[1:])
        await run.ended()
    assert run.learner.digest() == plain("trimmed_mean", HONEST, {NAMES[-1]: "not finite"})


@pytest.mark.parametrize("policy", [{}, {"deadline": 20.0, "auto": AutoDeadline()}])
async def test_a_missing_worker_is_waited_for_for_a_while_only(time, policy):
    async with Run(time, **policy) as run:
        pushes = run.all(HONEST)
        await run.quiet()
        assert not any(push.done() for push in pushes.values())
        time.advance(10.0)
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        await run.ended()
    assert run.records[0].missing == (NAMES[-1],)
    assert run.learner.digest() == plain("median", HONEST)


async def test_a_slow_worker_is_left_behind(time):
    async with Run(time) as run:
        pushes = run.all(HONEST)
        slow = await run.offer(NAMES[-1])
        await run.send(slow, until=100)
        await run.quiet()
        time.advance(10.0)
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST)
        with pytest.raises(Overtaken):
            await slow.put(bytes(4))
        await run.coordinator.release(slow)
        await run.ended()
    assert run.learner.digest() == plain("median", HONEST)


async def test_whoever_leaves_after_its_last_byte_still_counts(time):
    async with Run(time) as run:
        pushes = run.all(HONEST[1:])
        leaving = asyncio.create_task(run.push(HONEST[0]))
        last = await run.offer(NAMES[-1])
        await run.send(last, until=D - 1)
        await run.quiet()
        leaving.cancel()
        assert await run.send(last) is None
        assert await asyncio.gather(*pushes.values()) == [None] * len(HONEST[1:])
        await run.ended()
    assert run.learner.digest() == plain("median")


async def test_a_lost_answer_is_given_again(time, monkeypatch):
    async with Run(time, rounds=2) as run:
        asked = threading.Event()
        step = run.learner.step

        def late(*given, **more):
            assert asked.wait(patience(20))
            return step(*given, **more)

        monkeypatch.setattr(run.learner, "step", late)
        await asyncio.gather(*run.all().values())
        assert await run.coordinator.offer("w00", 0, b"w00") is Refusal.DUPLICATE
        assert await run.coordinator.offer("w00", 0, b"other") is Refusal.COUNTED
        asked.set()


async def test_who_waits_hears_of_the_end(time):
    async with Run(time) as run:
        pushes = run.all(HONEST)
        await run.quiet()
        run.stop.set()
        assert set(await asyncio.gather(*pushes.values())) == {Refusal.FINISHED}
        assert await run.ended() == "stopped on request"


async def test_an_error_ends_the_run_and_is_raised(time, monkeypatch):
    def broken(self: Stream, block, start: int) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Stream, "advance", broken)
    run = await Run(time).__aenter__()
    pushes = run.all()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await run.ended()
    assert set(await asyncio.gather(*pushes.values())) == {Refusal.FINISHED}


async def test_rows_in_half_the_space(time):
    async with Run(time, "mean", rows="bfloat16") as run:
        assert await asyncio.gather(*run.all().values()) == [None] * N
        await run.ended()
    aggregator = aggregator_from("mean", "aggregator", f=F)
    learner = Learner(torch.ones(D), aggregator, Sgd(lr=1.0), rounds=1, seed=1)
    learner.step(0, {worker: vector(worker).bfloat16() for worker in NAMES}, {})
    assert run.learner.digest() == learner.digest()


@pytest.mark.parametrize("rows", ["float32", "bfloat16"])
async def test_blocks_of_int8_pass_the_window_whatever_their_pieces(time, rows):
    encoding = Encoding(D, "int8", 7)
    payloads = {w: encoding.encode(vector(w), rounding_seed(w, 0)) for w in NAMES}

    async def push(run: Run, worker: str, piece: int) -> object:
        slot = await run.coordinator.offer(worker, 0, worker.encode(), encoding)
        assert isinstance(slot, Slot)
        for at in range(0, slot.size, piece):
            await slot.put(payloads[worker][at : min(at + piece, slot.size)])
            await asyncio.sleep(0)
        return await run.coordinator.complete(slot)

    async with Run(time, "mean", rows=rows) as run:
        pushes = (push(run, worker, 10_007 * (i + 1)) for i, worker in enumerate(NAMES))
        assert await asyncio.gather(*pushes) == [None] * N
        await run.ended()
    learner = Learner(
        torch.ones(D), aggregator_from("mean", "aggregator", f=F), Sgd(lr=1.0), rounds=1, seed=1
    )
    learner.step(0, {w: encoding.decode(payloads[w]).to(TORCH[rows]) for w in NAMES}, {})
    assert run.learner.digest() == learner.digest()


async def test_sums_that_overflow_in_fast_kernels(time):
    large = torch.full((D,), 3e38)
    async with Run(time, "mean") as run:
        pushes = [asyncio.create_task(run.push(worker, large)) for worker in NAMES]
        assert await asyncio.gather(*pushes) == [None] * N
        await run.ended()
    assert run.records[0].update_norm == pytest.approx(3e38 * D**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "may"),
    [
        ("median", True),
        ("mean", True),
        ("sign_majority", True),
        ("krum", False),
        ("flag", False),
        ("bulyan", False),
        ({"mix": ["nnm"], "rule": "median"}, False),
    ],
)
def test_which_rules_need_no_row_twice(spec, may: bool):
    assert streams(aggregator_from(spec, "aggregator", f=1), 15) is may


async def test_a_run_goes_on_from_what_was_kept_with_the_same_bits(time):
    keeper = Memory()
    async with Run(time, rounds=2, kept={"keeper": keeper}) as straight:
        for round in range(2):
            await straight.opened(round)
            await asyncio.gather(*straight.all().values())
        await straight.ended()
    async with Run(time, rounds=2, kept={"state": keeper.kept[1]}) as resumed:
        await resumed.opened(1)
        await asyncio.gather(*resumed.all().values())
        await resumed.ended()
    assert resumed.learner.digest() == straight.learner.digest()

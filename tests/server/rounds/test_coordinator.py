"""Whole rounds in memory: no gRPC, no sleeping; time moves when a test says so."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
import torch
from tests.extent import patience
from tests.server.rounds.kit import D, Driven
from torch import Tensor

from varangian import aggregators
from varangian.aggregators import AggregationError, Aggregator, Gram, Krum
from varangian.protos.payloads.encoding import payload_digest
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.events import Refusal
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.computation import evaluation_is_due
from varangian.server.rounds.coordinator import Overtaken
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

NAN = float("nan")


@dataclass(frozen=True)
class Mean:
    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)


@dataclass(frozen=True)
class Slow(Mean):
    """Aggregates only when it is allowed to."""

    began: threading.Event = field(default_factory=threading.Event)
    allowed: threading.Event = field(default_factory=threading.Event)

    def __call__(self, gram: Gram) -> Tensor:
        self.began.set()
        assert self.allowed.wait(patience(20)), "never allowed to aggregate"
        return super().__call__(gram)


@dataclass(frozen=True)
class Failing(Mean):
    """Raises what it is told to."""

    error: Exception

    def __call__(self, gram: Gram) -> Tensor:
        raise self.error


class Run(Driven):
    """A run of workers in step."""

    def __init__(self, time, n=4, rule=None, f=1, every=100, evaluate=None, **policy):
        agreed = {"rounds": 3, "quorum": n - f, "deadline": 10.0, "shortfall": "wait", "f": f} | policy
        workers = tuple(f"w{i:02}" for i in range(n))
        aggregator = Aggregator(rule or Mean(), f=f)
        super().__init__(
            time,
            RunPolicy(workers, **agreed, selection=Everyone()),
            Learner(torch.ones(D), aggregator, Sgd(lr=1.0), rounds=3, seed=1),
            evaluate or (lambda parameters: (float(parameters[0]), 0.5)),
            every,
        )


def values(payload: memoryview) -> list[float]:
    return payload.cast("f").tolist()


# Whole rounds


@pytest.mark.parametrize(
    ("every", "due"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [2, 5, 6]), (7, [6]), (100, [6])]
)
def test_evaluations_are_due_every_so_often_and_after_the_last_round(every: int, due: list[int]):
    assert [round for round in range(7) if evaluation_is_due(round, 7, every)] == due


async def test_a_run_from_the_first_round_to_the_last(time):
    async with Run(time, every=2) as run:
        for round in range(3):
            await run.opened(round)
            for worker, value in (("w02", 3.0), ("w00", 1.0), ("w03", 4.0), ("w01", 2.0)):
                time.advance(0.5)
                assert await run.push(worker, value) is None
        assert await run.ended() == "all 3 rounds are done"
    assert [record.round for record in run.records] == [0, 1, 2]
    assert run.learner.parameters.tolist() == [1 - 3 * 2.5] * D
    first, second, third = run.records
    assert first.weights == dict.fromkeys(("w00", "w01", "w02", "w03"), 0.25)
    assert (first.missing, first.dropped, first.skipped, first.lr) == ((), {}, None, 1.0)
    assert first.update_norm == pytest.approx(2.5 * D**0.5)
    assert (first.loss, second.loss, third.loss) == (None, -4.0, -6.5)
    assert (first.seconds["wait"], second.seconds["wait"]) == (1.5, 2.0)
    assert set(first.seconds) == {"wait", "aggregate", "step"}
    assert set(second.seconds) == {"wait", "aggregate", "step", "evaluate"}


async def test_the_order_of_arrival_never_changes_a_bit(time):
    async def digest_of(order) -> str:
        async with Run(time, rounds=1) as run:
            for worker in order:
                await run.push(worker, 1 / (3 + int(worker[1:])))
            await run.ended()
        return run.learner.digest()

    names = ["w00", "w01", "w02", "w03"]
    assert await digest_of(names) == await digest_of(names[::-1])


async def test_everyone_pulls_the_same_memory(time):
    async with Run(time) as run:
        first = await run.opened(0)
        assert (await run.opened(0)).payload.obj is first.payload.obj
        assert values(first.payload) == [1.0] * D
        assert first.payload.readonly
        assert first.digest == payload_digest(first.payload)
        for worker in run.machine.policy.workers:
            await run.push(worker, 1.0)
        second = await run.opened(1)
        assert values(second.payload) == [0.0] * D
        assert second.digest == payload_digest(second.payload)
        assert values(first.payload) == [1.0] * D


# Time


async def test_a_round_closes_at_its_deadline_without_the_missing_worker(time):
    async with Run(time) as run:
        for worker in ("w00", "w01", "w02"):
            await run.push(worker, 1.0)
        time.advance(9.99)
        assert run.coordinator.round == 0
        assert run.coordinator.status().missing == ("w03",)
        time.advance(0.01)
        await run.opened(1)
    assert run.records[0].missing == ("w03",)
    assert run.records[0].seconds["wait"] == pytest.approx(10.0)


async def test_a_stalled_upload_delays_its_owner_only(time):
    async with Run(time, rule=(slow := Slow())) as run:
        stalled = await run.offer("w03", 7.0)
        for worker in ("w00", "w01", "w02"):
            await run.push(worker, 1.0)
        time.advance(10.0)
        await asyncio.to_thread(slow.began.wait, 20)
        with pytest.raises(Overtaken, match="This round is over"):
            await stalled.put(b"")
        slow.allowed.set()
        await run.opened(1)
        assert run.learner.parameters.tolist() == [0.0] * D
        assert await run.push("w03", 1.0) is Refusal.BUSY
        assert await run.coordinator.complete(stalled) is Refusal.STALE
        assert await run.push("w03", 1.0) is None
    assert run.records[0].missing == ("w03",)
    assert run.records[0].dropped == {}


async def test_below_the_quorum_skip_records_the_round_and_goes_on(time):
    async with Run(time, shortfall="skip", every=2) as run:
        await run.push("w00", 1.0)
        time.advance(10.0)
        snapshot = await run.opened(1)
        assert values(snapshot.payload) == [1.0] * D
        time.advance(10.0)
        time.advance(10.0)
        assert await run.ended() == "all 3 rounds are done"
    assert [record.round for record in run.records] == [0, 1, 2]
    assert run.records[0].missing == ("w01", "w02", "w03")
    assert all((record.skipped or "").endswith("the quorum of 3 is not met") for record in run.records)
    assert [record.accuracy for record in run.records] == [None, 0.5, 0.5]


async def test_no_timer_is_left_behind(time):
    async with Run(time, rounds=1) as run:
        await run.push("w00", 1.0)
        assert [timer.at for timer in time.waiting()] == [time.now + 10]
        for worker in ("w01", "w02", "w03"):
            await run.push(worker, 1.0)
        await run.ended()
        assert time.waiting() == []


# Faults


async def test_a_vector_that_is_not_finite_spends_one_of_the_f(time):
    async with Run(time, n=5, rule=Krum(f=1), rounds=2) as run:
        for worker, value in (("w00", 1.0), ("w01", 1.1), ("w02", 1.2), ("w03", 1.3)):
            await run.push(worker, value)
        assert await run.push("w04", NAN) == "not finite"
        assert await run.push("w04", 1.0) is Refusal.STALE
        await run.opened(1)
        # In the next round it is welcome again.
        assert await run.push("w04", 1.0) is None
    assert run.records[0].dropped == {"w04": "not finite"}
    assert run.records[0].weights is not None
    assert "w04" not in run.records[0].weights


async def test_a_worker_whose_vector_was_dropped_hears_so_also_where_no_rule_has_coefficients(time):
    async with Run(time, n=5, rule=aggregators.Median(), rounds=3) as run:
        for round in range(2):
            await run.opened(round)
            for worker, value in (("w00", 1.0), ("w01", 1.1), ("w02", 1.2), ("w03", 1.3)):
                await run.push(worker, value)
            await run.push("w04", 1.0 if round else NAN)
            await run.opened(round + 1)
            assert run.records[round].weights is None
            assert run.coordinator.weights == ({} if round else {"w04": (0, 0.0)})


async def test_subnormal_numbers_are_flushed_before_they_count(time):
    async with Run(time, rounds=1) as run:
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1e-40)
        await run.ended()
    assert run.records[0].update_norm == 0.0


async def test_the_first_complete_vector_of_a_worker_counts(time):
    async with Run(time) as run:
        assert await run.push("w00", 1.0) is None
        assert await run.push("w00", -100.0) is Refusal.COUNTED
        assert await run.push("w00", 1.0) is Refusal.DUPLICATE
        for worker in ("w01", "w02", "w03"):
            await run.push(worker, 1.0)
        await run.opened(1)
    assert run.records[0].dropped == {}
    assert run.learner.parameters.tolist() == [0.0] * D


async def test_why_a_round_was_declined_is_in_its_record(time):
    async with Run(time) as run:
        assert await run.coordinator.decline("w03", 0, "no\x1b[31m memory\n" + "!" * 300) is None
        for worker in ("w00", "w01", "w02"):
            await run.push(worker, 1.0)
        await run.opened(1)
        assert await run.coordinator.decline("w03", 0, "too late") is Refusal.STALE
    (reason,) = run.records[0].declined.values()
    assert (reason[:19], len(reason)) == ("no\\x1b[31m memory\\n", 200)
    assert (run.records[0].missing, run.records[0].dropped) == ((), {})


# Uploads


async def test_an_upload_that_died_counts_nothing(time):
    async with Run(time) as run:
        slot = await run.offer("w00", 1.0)
        assert run.coordinator.status().present == ("w00",)
        assert await run.push("w00", 1.0) is Refusal.BUSY
        await run.coordinator.release(slot)
        assert run.coordinator.status().present == ()
        assert await run.coordinator.complete(slot) is Refusal.UNOFFERED
        assert await run.push("w00", 2.0) is None


async def test_giving_a_slot_up_twice_does_not_end_the_next_upload(time):
    async with Run(time) as run:
        first = await run.offer("w00", 1.0)
        await run.coordinator.release(first)
        second = await run.offer("w00", 1.0)
        await run.coordinator.release(first)
        assert await run.coordinator.complete(second) is None
        await run.coordinator.release(second)
        assert run.coordinator.status().counted == ("w00",)


async def test_nothing_lands_in_a_slot_that_was_given_up(time):
    async with Run(time) as run:
        slot = await run.offer("w00", 1.0)
        await run.coordinator.release(slot)
        with pytest.raises(Overtaken) as error:
            await slot.put(b"1234")
        assert error.value.refusal is Refusal.UNOFFERED
        run.stop.set()
        await run.ended()


async def test_half_a_vector_is_not_counted(time):
    async with Run(time) as run:
        slot = await run.coordinator.offer("w00", 0, b"")
        await slot.put(bytes(4))
        with pytest.raises(ValueError, match="Found 1 numbers of w00"):
            await run.coordinator.complete(slot)


# Waiting for a round


async def test_a_pull_waits_for_the_next_round(time):
    async with Run(time) as run:
        pull = asyncio.create_task(run.coordinator.snapshot(0, 5.0))
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1.0)
        snapshot = await pull
        assert (snapshot.round, snapshot.finished) == (1, False)


async def test_a_pull_runs_out_of_patience(time):
    async with Run(time) as run:
        pull = asyncio.create_task(run.coordinator.snapshot(0, 5.0))
        await asyncio.sleep(0)
        time.advance(4.9)
        await asyncio.sleep(0)
        assert not pull.done()
        time.advance(0.1)
        assert await pull is None
        assert time.waiting() == []
        assert await run.coordinator.snapshot(0, 0.0) is None


async def test_a_pull_that_goes_away_leaves_nothing_behind(time):
    async with Run(time) as run:
        pull = asyncio.create_task(run.coordinator.snapshot(0, 5.0))
        await asyncio.sleep(0)
        assert len(time.waiting()) == 1
        pull.cancel()
        await asyncio.wait([pull])
        assert time.waiting() == []


async def test_two_rounds_may_open_before_a_pull_wakes_up(time):
    async with Run(time, shortfall="skip") as run:
        await run.push("w00", 1.0)
        pull = asyncio.create_task(run.coordinator.snapshot(0, 1e9))
        await asyncio.sleep(0)
        time.advance(10.0)
        time.advance(10.0)
        snapshot = await pull
        assert snapshot.round == 2


async def test_everyone_who_waits_hears_of_the_end(time):
    async with Run(time) as run:
        pulls = [asyncio.create_task(run.coordinator.snapshot(0, 1e9)) for _ in range(5)]
        await asyncio.sleep(0)
        run.stop.set()
        for snapshot in await asyncio.gather(*pulls):
            assert (snapshot.finished, snapshot.reason) == (True, "stopped on request")


# The loop stays awake


async def test_the_loop_answers_while_a_slow_rule_aggregates(time):
    async with Run(time, rule=(slow := Slow())) as run:
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1.0)
        await asyncio.to_thread(slow.began.wait, 20)
        status = run.coordinator.status()
        assert (status.round, status.finished, status.counted) == (0, False, run.machine.policy.workers)
        assert await run.push("w00", 1.0) is Refusal.DUPLICATE
        assert await run.push("w00", 2.0) is Refusal.COUNTED
        assert await run.push("w00", 2.0, round=1) is Refusal.FUTURE
        assert await run.coordinator.snapshot(-1, 0.0) is None, (
            "a round that is being aggregated is not open"
        )
        time.advance(3600)
        assert run.records == []
        slow.allowed.set()
        await run.opened(1)
    assert len(run.records) == 1


async def test_the_loop_answers_while_an_evaluation_hangs(time):
    """The round stands still until it returns."""
    began, allowed = threading.Event(), threading.Event()

    def evaluate(parameters: Tensor) -> tuple[float, float]:
        began.set()
        assert allowed.wait(patience(60))
        return 0.0, 0.0

    async with Run(time, evaluate=evaluate, every=1) as run:
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1.0)
        await asyncio.to_thread(began.wait, 20)
        assert run.coordinator.status().round == 0
        assert await run.push("w00", 1.0) is Refusal.DUPLICATE
        time.advance(3600)
        assert await run.coordinator.snapshot(-1, 0.0) is None
        assert run.records == []
        allowed.set()
        await run.opened(1)
    assert len(run.records) == 1


async def test_a_late_upload_hears_so_while_a_slow_rule_aggregates(time):
    async with Run(time, rule=(slow := Slow())) as run:
        slot = await run.offer("w03", 1.0)
        for worker in ("w00", "w01", "w02"):
            await run.push(worker, 1.0)
        time.advance(10.0)
        await asyncio.to_thread(slow.began.wait, 20)
        assert await run.coordinator.complete(slot) is Refusal.STALE
        slow.allowed.set()


async def test_heavy_work_has_one_thread_of_its_own(time):
    threads = set[tuple[str, int]]()

    def evaluate(parameters: Tensor) -> tuple[float, float]:
        threads.add((threading.current_thread().name, torch.get_num_threads()))
        return 0.0, 0.0

    async with Run(time, evaluate=evaluate, every=1) as run:
        for round in range(3):
            await run.opened(round)
            for worker in ("w00", "w01", "w02", "w03"):
                await run.push(worker, 1.0)
        await run.ended()
    assert threads == {("varangian-learner_0", 1)}


async def test_a_round_opens_only_after_the_evaluation(time):
    evaluating, allowed = threading.Event(), threading.Event()

    def evaluate(parameters: Tensor) -> tuple[float, float]:
        evaluating.set()
        assert allowed.wait(patience(20))
        return 0.0, 0.0

    async with Run(time, evaluate=evaluate, every=1) as run:
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1.0)
        await asyncio.to_thread(evaluating.wait, 20)
        time.advance(100)
        assert run.coordinator.round == 0
        allowed.set()
        await run.opened(1)
        assert [timer.at for timer in time.waiting()] == [time.now + 10]


# The end


async def test_rounds_that_the_rule_refuses_are_skipped_up_to_a_limit(time):
    async with Run(time, rule=Failing(AggregationError("no guarantee.")), rounds=9, max_skips=3) as run:
        for round in range(3):
            await run.opened(round)
            for worker in ("w00", "w01", "w02", "w03"):
                await run.push(worker, 1.0)
        reason = await run.ended()
    assert reason == "3 rounds in a row had no update; the last, round 2: no guarantee."
    assert [record.skipped for record in run.records] == [f"round {r}: no guarantee." for r in range(3)]
    assert run.learner.parameters.tolist() == [1.0] * D


async def test_a_stop_ends_the_run(time):
    async with Run(time) as run:
        await run.push("w00", 1.0)
        run.stop.set()
        assert await run.ended() == "stopped on request"
        assert await run.push("w01", 1.0) is Refusal.FINISHED
        assert run.coordinator.status().sentence == "stopped on request"
        assert time.waiting() == []


async def test_a_stop_waits_for_the_round_in_the_making(time):
    async with Run(time, rule=(slow := Slow())) as run:
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1.0)
        await asyncio.to_thread(slow.began.wait, 20)
        run.stop.set()
        slow.allowed.set()
        assert await run.ended() == "stopped on request"
    assert [record.round for record in run.records] == [0]
    assert run.learner.parameters.tolist() == [0.0] * D


async def test_an_error_of_a_rule_of_the_user_skips_its_round(time):
    async with Run(time, rule=Failing(ZeroDivisionError("a bug")), max_skips=1) as run:
        for worker in ("w00", "w01", "w02", "w03"):
            await run.push(worker, 1.0)
        reason = await run.ended()
    assert "test_coordinator:Failing failed: ZeroDivisionError: a bug" in reason
    assert run.learner.parameters.tolist() == [1.0] * D


async def test_an_error_of_a_rule_of_ours_ends_the_run_and_is_raised(time, monkeypatch):
    def wrong(rule, gram):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(aggregators.Mean, "__call__", wrong)
    run = await Run(time, rule=aggregators.Mean()).__aenter__()
    pull = asyncio.create_task(run.coordinator.snapshot(0, 20))
    for worker in ("w00", "w01", "w02", "w03"):
        await run.push(worker, 1.0)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await run.ended()
    snapshot = await pull
    assert snapshot.reason == "the server ended on an error (ZeroDivisionError)"
    assert await run.push("w00", 1.0) is Refusal.FINISHED


async def test_uploads_that_are_open_at_the_end_can_be_given_up(time):
    async with Run(time) as run:
        first, second = await run.offer("w00", 1.0), await run.offer("w01", 1.0)
        run.stop.set()
        await run.ended()
        assert await run.coordinator.complete(first) is Refusal.FINISHED
        await run.coordinator.release(second)

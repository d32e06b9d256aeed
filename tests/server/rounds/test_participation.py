"""Whole rounds in memory, of runs whose workers are invited; time moves when a test says so."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.server.rounds.kit import D, Driven

from varangian.aggregators import Aggregate, Aggregator, Krum, Mean, Median, TrimmedMean
from varangian.aggregators.graphs import Ring
from varangian.protos.payloads.encoding import payload_digest
from varangian.protos.refusals import Refusal
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.staleness import Polynomial
from varangian.server.protocol.events import Close, Skip
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Overtaken
from varangian.server.rows.delta_sum import DeltaSum
from varangian.server.rows.latest import LatestVectors
from varangian.server.rows.source import Pushed, WeightedByAge
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

NAN = float("nan")


class Run(Driven):
    """A run whose workers are invited."""

    def __init__(
        self,
        time,
        choice,
        row_source=None,
        n=4,
        rule=None,
        f=0,
        row_slots=None,
        rows="float32",
        places_last=False,
        **policy,
    ):
        agreed = {"rounds": 9, "quorum": 1, "deadline": 10.0, "shortfall": "wait", "f": f} | policy
        self.names = tuple(f"w{i:02}" for i in range(n))
        aggregator = Aggregator(rule or Mean(), f=f)
        super().__init__(
            time,
            RunPolicy(self.names, **agreed, selection=choice),
            Learner(torch.zeros(D), aggregator, Sgd(lr=1.0), rounds=agreed["rounds"], seed=1),
            row_source=row_source,
            row_slots=row_slots,
            rows=rows,
            places_last=places_last,
        )

    def ask(self, *workers, after=-1):
        return [self.coordinator.pulls.ask(worker, after) for worker in workers]

    async def recorded(self, rounds):
        while len(self.records) < rounds:
            await asyncio.sleep(0)

    def model(self):
        return self.learner.parameters[0].item()


def latest(n=4, k=2, **options):
    return LatestVectors.of(tuple(f"w{i:02}" for i in range(n)), D, k, **options)


async def asked(run: Run, worker: str, after: int = -1, patience: float = 5.0):
    async with run.coordinator.pulls.answered(worker, after, patience) as pull:
        return pull.snapshot


# The latest vectors of all


@pytest.mark.parametrize("on_disk", [False, True])
async def test_who_is_away_still_counts_with_its_latest_vector(time, tmp_path: Path, on_disk: bool):
    store = latest(folder=str(tmp_path) if on_disk else None)
    async with Run(time, LongestAbsent(2, gather=1.0), store) as run:
        run.ask("w00", "w01")
        run.ask("w02", "w03", after=0)
        for worker, value in (("w00", 4.0), ("w01", 8.0)):
            assert await run.push(worker, value, 0) is None
        await run.opened(1)
        assert run.model() == -(4 + 8) / 4
        run.ask("w00", "w01", after=0)
        await run.push("w02", 2.0, 1)
        await run.push("w03", 2.0, 1)
        await run.opened(2)
        assert run.model() == -12 / 4 - 16 / 4
    first, second = run.records
    assert first.weights == dict.fromkeys(run.names, 0.25)
    assert (first.ages, first.missing) == ({"w00": 0, "w01": 0}, ())
    assert second.ages == {"w00": 1, "w01": 1, "w02": 0, "w03": 0}
    assert [*tmp_path.iterdir()] == []
    store.close()


def test_vectors_of_a_round_that_was_skipped_are_new_in_the_next_step():
    store, rows = latest(), {"w00": torch.ones(D), "w01": torch.ones(D)}

    def fresh(round: int, *workers: str) -> set[str]:
        close = Close(round, workers, {}, (), 0.0, "")
        return {*store.step_input(close, {worker: rows[worker] for worker in workers}).fresh}

    def skip(round: int, *workers: str) -> None:
        store.skip(Skip(round, workers, {}, (), 0.0, ""), {worker: rows[worker] for worker in workers})

    assert fresh(0, "w00") == {"w00"}
    skip(1, "w01")
    assert fresh(2) == {"w01"}
    skip(2)  # the step came to nothing
    assert fresh(3, "w00") == {"w00", "w01"}
    assert fresh(4, "w00") == {"w00"}


async def test_who_proves_faulty_is_left_out_and_its_vectors_are_forgotten(time):
    async with Run(time, LongestAbsent(4), latest(k=4), rule=TrimmedMean(f=1), f=1) as run:
        run.ask(*run.names)
        for worker in run.names:
            await run.push(worker, 8.0, 0)
        await run.opened(1)
        run.ask(*run.names, after=0)
        for worker in run.names[:3]:
            await run.push(worker, 8.0, 1)
        assert await run.push("w03", NAN, 1) == "not finite"
        await run.opened(2)
        run.ask(*run.names[:2], after=1)
        run.ask("w02", "w03", after=2)
        for worker in run.names[:2]:
            await run.push(worker, 8.0, 2)
        await run.opened(3)
    _, fault, after = run.records
    assert fault.dropped == {"w03": "not finite"}
    assert (fault.ages, after.ages) == (dict.fromkeys(run.names[:3], 0), {"w00": 0, "w01": 0, "w02": 1})
    # Of 8, 8, 8 and, in place of what w03 sent in round 0, nothing: the largest and the least are cut.
    assert run.model() == -3 * 8.0


@pytest.mark.parametrize("when", ["open", "aggregating"])
async def test_what_is_kept_of_a_worker_is_forgotten_when_it_is_revoked(time, when):
    async with Run(time, LongestAbsent(2), latest(n=3), n=3) as run:
        run.ask("w00", "w01")
        run.ask("w02", after=0)
        await run.push("w00", 6.0, 0)
        await run.push("w01", 900.0, 0)
        if when == "aggregating":
            run.coordinator.withdraw("w01", "certificate revoked")
        await run.opened(1)
        assert run.model() == -906.0 / 3
        if when == "open":
            run.coordinator.withdraw("w01", "certificate revoked")
        run.ask("w00", after=0)
        await run.push("w00", 6.0, 1)
        await run.push("w02", 3.0, 1)
        await run.opened(2)
        assert run.model() == -906.0 / 3 - (6.0 + 3.0) / 3
        # With another certificate it is a worker like the others.
        run.ask("w00", "w01", after=1)
        await run.push("w00", 6.0, 2)
        await run.push("w01", 9.0, 2)
        await run.opened(3)
        assert run.model() == -906.0 / 3 - 9.0 / 3 - (6.0 + 9.0 + 3.0) / 3
    assert [record.revoked for record in run.records] == [(), ("w01",), ()]
    assert run.records[1].ages == {"w00": 0, "w02": 0}


async def test_a_vector_expires(time):
    async with Run(time, LongestAbsent(1), latest(n=2, k=1, expire=1), n=2) as run:
        run.ask("w00", after=-1)
        run.ask("w01", after=0)
        await run.push("w00", 6.0, 0)
        for round in (1, 2):
            await run.opened(round)
            run.ask("w00", after=2)
            run.ask("w01", after=round - 1)
            await run.push("w01", 2.0, round)
        await run.opened(3)
    assert [record.ages for record in run.records] == [{"w00": 0}, {"w00": 1, "w01": 0}, {"w01": 0}]
    assert run.model() == -(6 / 2) - (8 / 2) - (2 / 2)


async def test_a_number_too_large_for_the_store_proves_a_fault(time):
    largest = torch.finfo(torch.float32).max
    store = latest(k=2, store="bfloat16")
    async with Run(time, LongestAbsent(2), store, rule=Median(), f=1, rows="bfloat16") as run:
        run.ask("w00", "w01")
        run.ask("w02", "w03", after=5)
        assert await run.push("w00", largest, 0) == "not finite"
        assert await run.push("w01", 1.0, 0) is None
        await run.opened(1)
    assert run.records[0].dropped == {"w00": "not finite"}


async def test_distances_that_are_kept_are_those_of_the_rows(time):
    """With so many workers and so few that push, only what changed is measured."""
    n, k = 60, 2
    store = latest(n, k)
    async with Run(time, LongestAbsent(k), store, n=n, rule=Krum(f=1), f=1) as run:
        fresh, reference = Aggregator(Krum(f=1), f=1), None
        for round in range(5):
            chosen = run.names[2 * round : 2 * round + 2]
            run.ask(*chosen, after=round - 1)
            run.ask(*(set(run.names) - set(chosen)), after=round + 1)
            for worker in chosen:
                await run.push(worker, 1.0 + int(worker[1:]) / 7 + round, round)
            await run.opened(round + 1)
            rows = [row.clone() for row in store.latest.rows().values()]
            expected = fresh(rows, reference)
            reference = run.learner.reference
            assert torch.equal(expected.vector, reference)
            assert [*run.records[-1].weights.values()] == expected.weights.tolist()


# A round without an update


async def test_what_was_pushed_for_a_round_below_its_quorum_is_kept(time):
    store = DeltaSum(("w00", "w01"), D)
    async with Run(time, LongestAbsent(2), store, n=2, quorum=2, shortfall="skip") as run:
        run.ask("w00", "w01")
        await run.push("w00", 6.0, 0)
        time.advance(10.0)
        await run.opened(1)
        run.ask("w00", "w01", after=0)
        assert await run.offer("w00", 1.0, 1) is Refusal.BUSY, "its last vector is still being read"
        await run.recorded(1)
        await run.push("w00", 2.0, 1)
        await run.push("w01", 4.0, 1)
        await run.opened(2)
    assert run.records[0].skipped is not None
    assert run.model() == -(6 + 2 + 4) / 2


async def test_what_the_rule_could_not_take_counts_once(time):
    class Failing(DeltaSum):
        failures = 1

        def step_input(self, close, rows):
            given = super().step_input(close, rows)
            if self.failures:
                self.failures -= 1
                return replace(given, aggregation=lambda: Aggregate(torch.full((D,), torch.nan), None, ()))
            return given

    async with Run(time, LongestAbsent(1), Failing(("w00",), D), n=1) as run:
        for round in (0, 1):
            await run.opened(round)
            run.ask("w00", after=round - 1)
            await run.recorded(round)
            await run.push("w00", 6.0, round)
        await run.opened(2)
    assert "is not finite" in run.records[0].skipped
    assert run.model() == -12.0


# Vectors of several ages


async def test_old_vectors_count_by_their_age_and_faults_change_nothing_about_it(time):
    choice = BufferSelection(3, tau=5, staleness=Polynomial(a=1.0))
    async with Run(time, choice, WeightedByAge(), rule=Median(), n=5, f=1) as run:
        run.ask(*run.names)
        for worker in ("w00", "w01", "w04"):
            await run.push(worker, 4.0, 0)
        await run.opened(1)
        run.ask("w00", "w01", after=0)
        assert await run.push("w02", 2.0, 0) is None
        assert await run.push("w03", NAN, 0) == "not finite"
        await run.push("w00", 8.0, 1)
        await run.opened(2)
        run.ask("w00", "w03", after=1)
        for worker, value, round in (("w01", 6.0, 1), ("w00", 4.0, 2), ("w03", 1.0, 2)):
            await run.push(worker, value, round)
        await run.opened(3)
    assert [record.ages for record in run.records] == [
        {"w00": 0, "w01": 0, "w04": 0},
        {"w00": 0, "w02": 1},
        {"w00": 0, "w01": 1, "w03": 0},
    ]
    assert run.records[1].dropped == {"w03": "not finite"}
    # The medians of 4, 4, 4; of 2 / 2 and 8; and of 6 / 2, 4 and 1.
    assert run.model() == -4 - 4.5 - 3


async def test_only_members_are_aggregated_and_the_others_wait_for_their_turn(time):
    async with Run(time, NeighbourhoodSelection(Ring()), Pushed(), n=5) as run:
        run.ask(*run.names)
        groups = [run.machine.policy.selection.members(run.names, round) for round in range(2)]
        outside = next(worker for worker in run.names if worker not in groups[0] + groups[1])
        assert await run.push(outside, 100.0, 0) is None
        for worker in groups[0]:
            assert await run.push(worker, 3.0, 0) is None
        await run.opened(1)
        assert run.model() == -3.0
        (ticket,) = run.ask(outside, after=0)
        assert ticket.answer is None
        assert await run.push(outside, 100.0, 0) is Refusal.DUPLICATE
        assert await run.push(outside, 1.0, 1) is Refusal.NOT_INVITED
    assert set(run.records[0].ages) == set(groups[0])


# Pulls


async def test_a_pull_waits_for_its_turn_and_gets_the_model_of_it(time):
    async with Run(time, LongestAbsent(1, gather=1.0), n=2) as run:
        parked = asyncio.create_task(asked(run, "w01"))
        await asyncio.sleep(0)
        assert (await asked(run, "w00")).round == 0
        await run.push("w00", 7.0, 0)
        await run.opened(1)
        time.advance(1.0)
        snapshot = await parked
    assert (snapshot.round, snapshot.payload.cast("f").tolist()) == (1, [-7.0] * D)


async def test_impatience_and_a_hang_up_free_a_place_and_a_late_farewell_does_not(time):
    async with Run(time, LongestAbsent(1, gather=1.0), n=2) as run:
        impatient = asyncio.create_task(asked(run, "w00", patience=0.5))
        await asyncio.sleep(0)
        time.advance(0.5)
        assert await impatient is None
        assert dict(run.machine.state.parked) == {}
        hanging = asyncio.create_task(asked(run, "w00", after=3))
        await asyncio.sleep(0)
        assert dict(run.machine.state.parked) == {"w00": 4}
        again = asyncio.create_task(asked(run, "w00", after=4))
        await asyncio.sleep(0)
        assert await hanging is None, "another pull has taken its place"
        assert dict(run.machine.state.parked) == {"w00": 5}
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        assert dict(run.machine.state.parked) == {}


async def test_where_places_last_a_worker_whose_pull_breaks_comes_back_to_its_own(time):
    async with Run(time, LongestAbsent(1, gather=1.0), n=2, places_last=True) as run:
        broken = asyncio.create_task(asked(run, "w00"))
        await asyncio.sleep(0)
        broken.cancel()
        with pytest.raises(asyncio.CancelledError):
            await broken
        time.advance(1.5)  # it is selected although its connection is broken: nobody else is there
        assert dict(run.machine.state.invited) == {"w00": 0}
        other = asyncio.create_task(asked(run, "w01"))
        assert (await asked(run, "w00")).round == 0
        run.coordinator.absent("w00")
        assert (await other).round == 0, "a place is free once its worker is absent"
        impatient = asyncio.create_task(asked(run, "w00", after=3, patience=0.5))
        await asyncio.sleep(0)
        time.advance(0.5)
        assert await impatient is None
        assert "w00" not in run.machine.state.parked, "who asked for too long has given up by itself"


@pytest.mark.parametrize("delivered", [False, True])
async def test_who_hangs_up_before_the_model_is_sent_was_not_invited(time, delivered: bool):
    async with Run(time, LongestAbsent(1), n=2) as run:

        async def hang_up():
            async with run.coordinator.pulls.answered("w00", -1, 5.0) as pull:
                pull.delivered = delivered
                raise ConnectionError

        with pytest.raises(ConnectionError):
            await hang_up()
        assert run.coordinator.pulls.over("w00", 0) is not delivered
        run.ask("w01")
        assert await run.push("w00", 1.0, 0) is (None if delivered else Refusal.NOT_INVITED)


async def test_patience_is_for_the_answer_and_not_for_its_way(time):
    async with (
        Run(time, LongestAbsent(1), n=2, deadline=99.0) as run,
        run.coordinator.pulls.answered("w00", -1, 5.0) as pull,
    ):
        time.advance(50.0)
        assert pull.snapshot is not None
        assert dict(run.machine.state.invited) == {"w00": 0}


async def test_a_model_is_not_kept_for_who_has_it(time):
    async with Run(time, BufferSelection(1, tau=9), n=2) as run:
        models = [weakref.ref((await asked(run, "w00")).payload.obj)]
        for round in range(4):
            await run.opened(round)
            await run.push("w01" if round else "w00", 1.0, round)
            await run.recorded(round + 1)
            models.append(weakref.ref((await asked(run, "w01", after=round)).payload.obj))
        gc.collect()
        assert [model() is not None for model in models] == [False] * 4 + [True]


async def test_everybody_who_waits_hears_of_the_end(time):
    async with Run(time, LongestAbsent(1), n=3, rounds=1) as run:
        parked = [asyncio.create_task(asked(run, worker, after=5)) for worker in ("w01", "w02")]
        await asyncio.sleep(0)
        await asked(run, "w00")
        await run.push("w00", 1.0, 0)
        for snapshot in await asyncio.gather(*parked):
            assert (snapshot.finished, snapshot.reason) == (True, "all 1 rounds are done")
        late = await asked(run, "w00")
        assert late.finished


async def test_the_status_says_who_was_asked(time):
    async with Run(time, LongestAbsent(2), n=4) as run:
        run.ask(*run.names)
        await run.push("w00", 1.0, 0)
        status = run.coordinator.status()
        assert (status.counted, status.missing) == (("w00",), ("w01",))
        assert "1 of 2 answers" in status.sentence


# Rows


async def test_a_place_is_lent_to_one_after_the_other(time):
    async with Run(time, LongestAbsent(1), n=3, row_slots=1) as run:
        for round, worker in enumerate(("w00", "w01", "w02")):
            await run.opened(round)
            run.ask(worker, after=round - 1)
            run.ask(*(set(run.names) - {worker}), after=round + 1)
            assert await run.push(worker, 1.0 + round, round) is None
        await run.opened(3)
    assert run.model() == -6.0


async def test_without_a_place_an_upload_has_to_come_again(time):
    async with Run(time, LongestAbsent(2), n=2, row_slots=1) as run:
        run.ask(*run.names)
        slot = await run.offer("w00", 1.0, 0)
        assert await run.offer("w01", 5.0, 0) is Refusal.BUSY
        await run.coordinator.release(slot)
        assert await run.push("w01", 5.0, 0) is None
        assert await run.offer("w00", 1.0, 0) is Refusal.BUSY, "what waits to be used is not given away"


async def test_an_upload_that_is_too_old_stops_midway(time):
    async with Run(time, LongestAbsent(2), n=2) as run:
        run.ask(*run.names)
        payload = torch.full((D,), 5.0).numpy().tobytes()
        slow = await run.coordinator.offer("w00", 0, payload_digest(payload))
        await slow.put(payload[:5])
        await run.push("w01", 1.0, 0)
        time.advance(10.0)
        await run.opened(1)
        with pytest.raises(Overtaken) as overtaken:
            await slow.put(payload[5:])
        assert overtaken.value.refusal is Refusal.TOO_OLD
        await run.coordinator.release(slow)
    assert run.records[0].missing == ("w00",)
    assert run.model() == -1.0

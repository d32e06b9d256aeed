"""Vectors of workers in this process: they count as uploads do, and where they lie if that is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor, Future

import pytest
import torch
from tests.extent import patience
from tests.server.rounds.kit import Driven
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from varangian.aggregators import Aggregator
from varangian.aggregators.rules.trimmed_mean import TrimmedMean
from varangian.protos.payloads.encoding import Encoding, payload_digest, rounding_seed
from varangian.protos.refusals import Refusal
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Adam

WORKERS = ("w00", "w01", "w02", "w03")
D = 1000
COPIES = ("clone", "stack", "cat", "_to_copy", "index", "copy_")


class Here(Executor):
    """Runs what it is given at once, in the thread of the test."""

    def submit(self, function, /, *given, **more):
        done = Future()
        done.set_result(function(*given, **more))
        return done


class Copied(TorchDispatchMode):
    """The operations that copied D numbers or more."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, given=(), more=None):
        result = function(*given, **(more or {}))
        name = function.overloadpacket.__name__
        if name in COPIES and isinstance(result, Tensor) and result.numel() >= D:
            self.found.append(name)
        return result


def driven(time, d=D, **options) -> Driven:
    policy = RunPolicy(
        WORKERS, rounds=3, quorum=3, deadline=10.0, shortfall="wait", f=1, selection=Everyone()
    )
    learner = Learner(torch.ones(d), Aggregator(TrimmedMean(f=1), f=1), Adam(), rounds=3, seed=1)
    return Driven(time, policy, learner, **options)


def vectors(round: int, d=D) -> Mapping[str, Tensor]:
    rng = torch.Generator().manual_seed(round)
    return dict(zip(WORKERS, torch.randn(4, d, generator=rng), strict=True))


async def carried_out(run: Driven) -> list[object]:
    async with run:
        for round in range(3):
            await run.coordinator.until_idle()
            assert run.coordinator.model.round == round
            for worker, vector in vectors(round).items():
                assert run.coordinator.hand_over(worker, round, vector) is None
        await run.ended()
        assert run.coordinator.idle
        assert run.coordinator.model.finished
    return [(record.weights, record.update_norm, record.missing, record.dropped) for record in run.records]


async def test_a_run_is_the_same_with_uploads_and_with_rows_of_either_kind(time):
    runs = [driven(time), driven(time, in_place=True)]
    first, second = [await carried_out(run) for run in runs]
    uploaded = driven(time)
    async with uploaded as run:
        for round in range(3):
            await run.opened(round)
            for worker, vector in vectors(round).items():
                slot = await run.coordinator.offer(worker, round, worker.encode())
                await slot.put(vector.numpy().tobytes())
                assert await run.coordinator.complete(slot) is None
        await run.ended()
    assert first == second
    assert len({run.learner.digest() for run in (*runs, uploaded)}) == 1


@pytest.mark.parametrize(
    "encoding", [Encoding(D, "int8"), Encoding(D, "int8", 2), Encoding(D, "bfloat16", 1)]
)
async def test_a_run_is_the_same_with_uploads_and_with_rows_that_are_rounded_here(time, encoding):
    kinds = ({}, {"in_place": True}, {"rows": "bfloat16"}, {"rows": "bfloat16"})
    runs = [driven(time, **kind) for kind in kinds]
    for run, uploads in zip(runs, (True, False, True, False), strict=True):
        async with run:
            for round in range(3):
                await run.coordinator.until_idle()
                for worker, vector in vectors(round).items():
                    if not uploads:
                        assert run.coordinator.hand_over(worker, round, vector, encoding) is None
                        continue
                    payload = encoding.encode(vector, rounding_seed(worker, round))
                    slot = await run.coordinator.offer(worker, round, payload_digest(payload), encoding)
                    await slot.put(payload)
                    assert await run.coordinator.complete(slot) is None
            await run.ended()
    pushes = [[record.pushes for record in run.records] for run in runs]
    assert pushes[0] == pushes[1] == pushes[2] == pushes[3]
    assert runs[0].learner.digest() == runs[1].learner.digest() != runs[2].learner.digest()
    assert runs[2].learner.digest() == runs[3].learner.digest()


@pytest.mark.parametrize("wire", ["float32", "int8"])
@pytest.mark.parametrize("in_place", [False, True])
async def test_a_vector_that_is_not_finite_proves_a_fault(time, in_place, wire):
    async with driven(time, in_place=in_place) as run:
        coordinator: Coordinator = run.coordinator
        await coordinator.until_idle()
        assert (
            coordinator.hand_over("w00", 0, torch.full((D,), torch.nan), Encoding(D, wire)) == "not finite"
        )
        assert coordinator.hand_over("w00", 0, torch.ones(D)) is Refusal.FAULTY
        assert coordinator.hand_over("w01", 1, torch.ones(D)) is Refusal.FUTURE
        for worker in WORKERS[1:]:
            assert coordinator.hand_over(worker, 0, torch.ones(D)) is None
        await coordinator.until_idle()
        assert coordinator.hand_over("w01", 0, torch.ones(D)) is Refusal.STALE
    assert run.records[0].dropped == {"w00": "not finite"}


async def test_a_run_with_rows_in_place_takes_no_uploads(time):
    async with driven(time, in_place=True) as run:
        with pytest.raises(ValueError, match="handed over"):
            await run.coordinator.offer("w00", 0, b"digest")


async def test_a_windowed_run_takes_uploads_alone(time):
    async with driven(time, window=True) as run:
        with pytest.raises(ValueError, match="uploaded"):
            run.coordinator.hand_over("w00", 0, torch.ones(D))


async def test_with_rows_in_place_a_round_copies_no_row(time):
    """Only the update, to memory that is kept, and the parameters, to where the optimizer steps."""
    async with driven(time, in_place=True, executor=Here()) as run:
        rows = vectors(0)
        await run.coordinator.until_idle()
        with Copied() as copied:
            for worker, vector in rows.items():
                run.coordinator.hand_over(worker, 0, vector)
            await run.coordinator.until_idle()
        assert run.coordinator.model.round == 1
        assert copied.found == ["copy_", "copy_"]


async def test_the_digest_of_a_model_is_made_for_those_who_pull_it_over_the_network(time):
    async with driven(time) as run:
        for round, encoded in enumerate((False, True)):
            await run.coordinator.until_idle()
            version = run.coordinator.model.version
            assert version.encoded is encoded
            _ = run.coordinator.model.digest
            for worker, vector in vectors(round).items():
                run.coordinator.hand_over(worker, round, vector)


async def test_a_stop_ends_an_idle_run(time):
    async with driven(time) as run:
        await run.coordinator.until_idle()
        run.stop.set()
        assert await asyncio.wait_for(run.ended(), patience(20)) == "stopped on request"
        assert run.coordinator.idle

"""The mean of latest vectors as a running sum: what a server knows of workers that it trusts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Mean
from varangian.server.protocol.events import Close, Skip
from varangian.server.rows.delta_sum import DeltaSum
from varangian.server.rows.latest_store import LatestStore
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.worker.training.error_feedback import DeltaEncoder as Sender

NAMES = ("w00", "w01", "w02", "w03")
D = 5


def learner() -> Learner:
    return Learner(torch.zeros(D), Aggregator(Mean()), Sgd(lr=1.0), rounds=10, seed=1)


def closed(round: int, workers: Any) -> Close:
    return Close(round, tuple(sorted(workers)), {}, (), 0.0, "all are there")


def skipped(round: int) -> Skip:
    return Skip(round, (), {}, (), 0.0, "a fault")


def vectors(round: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(round)
    return {name: torch.randn(D, generator=rng) for name in NAMES}


def step(server: DeltaSum, model: Learner, round: int, rows: dict[str, Tensor]) -> Tensor:
    """What the aggregate of a round is."""
    given = server.step_input(closed(round, rows), rows)
    before = model.parameters.clone()
    model.step(round, given.rows, {}, aggregation=given.aggregation)
    return before - model.parameters


def test_the_sum_of_what_is_new_is_the_mean_of_the_latest_vectors() -> None:
    server, latest, sender, model = DeltaSum(NAMES, D), LatestStore(NAMES, D), Sender(), learner()
    for round in range(12):
        there = [name for i, name in enumerate(NAMES[:3]) if (round + i) % 3]
        if round % 4 == 1:  # refused, or lost for good
            sender.encode(there[0], round, vectors(round)[there.pop(0)])
        for name in there:
            latest.replace(name, vectors(round)[name], round)
        rows = {name: sender.encode(name, round, vectors(round)[name]) for name in there}
        moved = step(server, model, round, rows)
        for name in there:
            sender.confirm(name, round)
        expected = torch.stack([*latest.rows().values()]).double().mean(dim=0)
        assert torch.allclose(server.mean, expected, rtol=0, atol=1e-7)
        assert torch.allclose(moved, expected.float(), rtol=0, atol=1e-6)


def test_who_was_never_heard_of_counts_as_zero() -> None:
    moved = step(DeltaSum(NAMES, D), learner(), 0, {"w00": torch.full((D,), 4.0)})
    assert moved.tolist() == [1.0] * D


def test_a_round_without_a_step_keeps_what_its_workers_sent() -> None:
    server = DeltaSum(NAMES, D)
    server.skip(skipped(0), {"w01": torch.full((D,), 8.0)})
    server.skip(skipped(1), {})
    assert server.mean.tolist() == [2.0] * D
    assert step(server, learner(), 2, {"w01": torch.zeros(D)}).tolist() == [2.0] * D


def test_the_sum_does_not_wear_off() -> None:
    """In float32 the small ones would be lost beside the large one."""
    server = DeltaSum(("w00", "w01"), 1)
    server.step_input(closed(0, ["w00"]), {"w00": torch.tensor([2.0**26])})
    for round in range(1, 101):
        server.step_input(closed(round, ["w01"]), {"w01": torch.tensor([1.0])})
    server.step_input(closed(101, ["w00"]), {"w00": torch.tensor([-(2.0**26)])})
    assert server.mean.item() == pytest.approx(50.0)


def test_nothing_is_left_of_it_at_the_end() -> None:
    server = DeltaSum(NAMES, D)
    server.close()
    assert server.mean.numel() == 0

"""Vectors that workers push by themselves in between, and what is kept of them, in whole runs."""

import pytest
import torch
from safetensors.torch import load_file
from tests.extent import for_everybody

from varangian.config import load
from varangian.launch import run

HALVES = ["availability={alternating: {period: 2}}", "workers=6", "rounds=9", "f=0", "worker.local_steps=2"]


def parameters(result):
    tensors = load_file(result.folder / "parameters.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_deltas_end_where_latest_vectors_do(carried_out):
    """The mean of what was sent last, once from all vectors and once from a sum."""
    latest, _, _ = carried_out("aggregator={fedlaavg: {participants: 2}}", *HALVES)
    deltas, records, _ = carried_out("aggregator={fedlaavg: {participants: 2, form: delta}}", *HALVES)
    alone, _, _ = carried_out("aggregator={fedavg: {participants: 2}}", *HALVES)
    assert torch.allclose(parameters(latest), parameters(deltas), rtol=0, atol=1e-6)
    assert not torch.allclose(parameters(latest), parameters(alone), rtol=0, atol=1e-3)
    assert [record.weights for record in records] == [None] * 9
    assert latest.digest != deltas.digest, "a sum is rounded in another order"


def test_steps_of_its_own_bring_a_worker_further(carried_out):
    settings = ["rounds=3", "worker.momentum=0", "optimizer.lr=0.2"]
    one, _, _ = carried_out(*settings)
    five, _, _ = carried_out(*settings, "worker.local_steps=5")
    assert five.loss < 0.8 * one.loss
    faster, _, _ = carried_out(*settings, "worker.local_steps=5", "worker.local_lr=1.0")
    assert faster.digest != five.digest


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_deltas_that_are_rounded_on_the_wire_end_where_others_do(carried_out, wire):
    """What a rounding takes from one delta is part of the next: the distance does not grow."""
    settings = ["aggregator={fedlaavg: {participants: 2, form: delta}}", *HALVES]
    exact, _, _ = carried_out(*settings)
    rounded, _, _ = carried_out(*settings, f"wire.dtype={wire}")
    moved = parameters(exact).std()
    assert 0 < (parameters(rounded) - parameters(exact)).abs().max() < 0.05 * moved


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["float32", pytest.param("int8", marks=pytest.mark.exhaustive)])
def test_deltas_count_once_over_the_wire(carried_out, small, wire):
    settings = [
        f"wire.dtype={wire}",
        "aggregator={fedlaavg: {form: delta}}",
        "f=0",
        "worker.per_process=2",
        "worker.local_steps=2",
    ]
    simulated, _, _ = carried_out(*settings)
    config = small(*settings, *for_everybody(), "backend=processes")
    served = run(config, observe=lambda record: None, note=lambda text: None)
    assert served.digest == simulated.digest
    assert load(served.folder / "config.yaml") == config


REMEMBERS = ["byzantine.attack={'tests.own_parts:Drifting': {silent: 3}}", "byzantine.count=1"]


def test_an_attacker_that_remembers_and_is_silent_in_some_rounds(carried_out):
    settings = [*REMEMBERS, "server.deadline=1", "server.quorum=4"]
    (one, records, _), (two, _, _) = carried_out(*settings), carried_out(*settings)
    assert one.digest == two.digest
    assert [len(record.missing) for record in records] == [0, 0, 1, 0, 0]
    assert not any(record.declined for record in records)
    _, records, _ = carried_out(
        *("byzantine.attack={'tests.own_parts:Drifting': {seconds: 9.0}}", "byzantine.count=1"),
        *("server.deadline=20", "server.quorum=4"),
    )
    (reason,) = records[2].declined.values()
    assert "`byzantine.attack` 'tests.own_parts:Drifting' failed: ZeroDivisionError" in reason


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_what_attackers_remember_is_the_same_in_processes(carried_out, small, momentum):
    settings = [
        *("byzantine.attack={'tests.own_parts:Drifting': {silent: 50}}", "byzantine.count=2", "f=2"),
        *("workers=6", "rounds=4", "worker.per_process=5", f"worker.momentum={momentum}"),
    ]
    simulated, _, _ = carried_out(*settings)
    config = small(*settings, *for_everybody(), "backend=processes")
    served = run(config, observe=lambda record: None, note=lambda text: None)
    assert served.digest == simulated.digest

"""Outer steps and fragments with a server from Python."""

import threading

import pytest
import torch
from tests.extent import patience
from tests.serving.own import net

import varangian
from varangian.registry import ConfigError
from varangian.worker.training.flat import flatten

SPLIT = {
    "workers": 7,
    "f": 1,
    "aggregator": "nnm+krum",
    "optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True},
    "server__fragments": 2,
    "worker__momentum": 0.0,
}


def test_a_server_with_fragments_goes_on_with_the_same_bits(served):
    straight, module, *_ = served(rounds=6, **SPLIT)
    half, *_ = served(rounds=3, server__checkpoint={"every": 1}, **SPLIT)
    again, other, *_ = served(rounds=6, start={"resume": half.folder}, **SPLIT)
    assert again.digest == straight.digest != half.digest
    assert torch.equal(flatten(other), flatten(module))


def test_a_module_has_to_have_as_many_parameters_as_fragments(served):
    with pytest.raises(ConfigError, match="at most 4, the number of parameter tensors of the model"):
        served(**{**SPLIT, "server__fragments": 5})


def test_loops_with_inner_optimizers_train_a_module_of_a_program(tmp_path):
    """The target is known to all; each worker has an optimizer of its own."""
    module = net()
    target = torch.linspace(-0.5, 0.5, len(flatten(module)))
    known = {**SPLIT, "workers": 3, "f": 0, "aggregator": "mean", "optimizer": {"lr": 1.0}, "rounds": 12}
    server = varangian.Server(module, output=str(tmp_path / "runs"), **known)
    before = (flatten(module) - target).norm()
    outcomes = {}

    def work(name, address, token):
        own = net(seed=int(name[1:]))
        inner = torch.optim.AdamW(own.parameters(), 0.02, weight_decay=0.0)
        with (
            varangian.connect(address, own, name=name, token=token) as worker,
            varangian.outer(own, worker, every=6) as outer,
        ):
            while outer.running:
                inner.zero_grad()
                flat = torch.cat([p.reshape(-1) for p in own.parameters()])
                (flat - target).square().sum().backward()
                inner.step()
                if (outcome := outer.step()) is not None:
                    outcomes.setdefault(name, []).append(bool(outcome))

    with server.start(note=lambda text: None) as running:
        threads = [
            threading.Thread(target=work, args=(name, running.address, running.token(name)))
            for name in server.config.worker_names
        ]
        for thread in threads:
            thread.start()
        result = running.result(patience(60))
        for thread in threads:
            thread.join(patience(20))
    assert (result.outcome, result.rounds) == ("finished", 12)
    assert outcomes == {name: [True] * 12 for name in server.config.worker_names}
    assert (flatten(module) - target).norm() < 0.5 * before

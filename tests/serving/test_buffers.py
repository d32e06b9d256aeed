"""Buffers of a module of a program: at its server, and at workers of the Python client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tests.extent import patience
from torch import nn

import varangian
from varangian.client.training.model import ModelVector
from varangian.launch.result import RunError
from varangian.registry import ConfigError
from varangian.worker.transport.client import ClientError

ROUNDS = 3


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def batch(name: str, round: int) -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(int(name[1:]) * 100 + round))


def honest(model: nn.Module, name: str, round: int) -> None:
    model(batch(name, round)).square().mean().backward()


def lying(model: nn.Module, name: str, round: int) -> None:
    honest(model, name, round)
    if name in ("w03", "w04"):
        model[1].running_var.fill_(1e30)
        model[1].running_mean.fill_(-1e30)
        model[1].num_batches_tracked.fill_(1 << 20)


@pytest.fixture
def served(tmp_path):
    """A server, and five workers in threads; gives the result, the module and those of the workers."""

    def serve(compute: Callable = honest, wrap=lambda module: module, module=None, start=None, **settings):
        known = {"workers": 5, "f": 2, "rounds": ROUNDS, "aggregator": "median", "seed": 1}
        known |= {"output": str(tmp_path / "runs"), "worker__momentum": 0.5, "wire__dtype": "bfloat16"}
        module = module or net()
        server = varangian.Server(module, **known | settings)
        modules, failed = {}, []

        def work(name):
            model = net(7)
            model[1].running_mean.fill_(5.0)
            modules[name] = model
            try:
                wrapped = wrap(model)
                with varangian.connect(
                    running.address, wrapped, token=running.token(name), name=name
                ) as worker:
                    while worker.pull():
                        compute(model, name, worker.round)
                        assert worker.push().accepted
            except BaseException as error:
                failed.append(error)

        with server.start(note=lambda text: None, **(start or {})) as running:
            threads = [threading.Thread(target=work, args=(name,)) for name in server.config.worker_names]
            for thread in threads:
                thread.start()
            result = running.result(patience(60))
            for thread in threads:
                thread.join(patience(60))
        assert not failed, failed
        return result, module, modules

    return serve


def by_hand(names: tuple[str, ...]) -> nn.Module:
    """Training in one process: the median of gradients and of statistics."""
    model = net()
    momenta: dict[str, list[torch.Tensor]] = {}
    for round in range(ROUNDS):
        copies = {name: deepcopy(model) for name in names}
        for name, copy in copies.items():
            honest(copy, name, round)
            before = momenta.get(name, [torch.zeros_like(p) for p in copy.parameters()])
            momenta[name] = [0.5 * m + 0.5 * p.grad for m, p in zip(before, copy.parameters(), strict=True)]
        with torch.no_grad():
            for place, parameter in enumerate(model.parameters()):
                rows = torch.stack([momenta[name][place].bfloat16().float() for name in names])
                parameter.sub_(rows.median(dim=0).values)
            for key, buffer in model.named_buffers():
                rows = torch.stack([copy.get_buffer(key) for copy in copies.values()])
                buffer.copy_(rows.median(dim=0).values)
    return model


def test_robust_ones_are_the_medians_of_the_workers(served):
    result, module, modules = served(buffers="robust", optimizer={"lr": 1.0})
    expected = by_hand(tuple(sorted(modules)))
    for key, value in expected.state_dict().items():
        assert torch.allclose(module.state_dict()[key], value, atol=1e-6), key
    assert module[1].num_batches_tracked == ROUNDS
    net(5).load_state_dict(varangian.load(result.folder))
    assert torch.equal(varangian.load(result.folder)["1.running_var"], module[1].running_var)


def test_liars_do_not_move_them_beyond_those_of_the_others(served):
    seen = []

    def evaluate(model):
        seen.append(model[1].running_var.clone())
        return float(seen[-1].mean())

    _, module, modules = served(lying, buffers="robust", evaluate=evaluate, evaluate__every=1)
    assert module[1].num_batches_tracked == ROUNDS
    assert (module[1].running_var < 10).all()
    assert (module[1].running_mean.abs() < 10).all()
    assert torch.equal(seen[-1], module[1].running_var)  # the evaluation has them
    assert modules["w03"][1].num_batches_tracked == 1 << 20


@pytest.mark.parametrize("settings", [{}, {"buffers": "local"}])
def test_local_ones_are_left_alone_at_both_ends(served, settings):
    _, module, modules = served(**settings)
    assert module[1].num_batches_tracked == 0
    assert torch.equal(module[1].running_mean, torch.zeros(4))
    assert all(model[1].num_batches_tracked == ROUNDS for model in modules.values())
    assert not torch.equal(modules["w00"][1].running_mean, modules["w01"][1].running_mean)


def test_it_goes_on_with_the_same_statistics(served, tmp_path):
    whole = {"buffers": "robust", "worker__momentum": 0.0, "server__checkpoint": {"every": 1}}
    straight, *_ = served(**whole)
    first, *_ = served(**whole, rounds=2, start={"folder": tmp_path / "run"})
    again, module, _ = served(**whole, start={"resume": first.folder})
    assert (again.rounds, module[1].num_batches_tracked) == (ROUNDS, ROUNDS)
    assert again.digest == straight.digest


def test_a_module_with_statistics_can_be_refused():
    with pytest.raises(RunError, match="Found those of '1': choose buffers='robust' or 'local'"):
        varangian.Server(net(), workers=5, f=1, buffers="refuse")
    varangian.Server(nn.Linear(2, 2), workers=5, f=1, buffers="refuse")
    with pytest.raises(ConfigError, match="buffers"):
        varangian.Server(net(), workers=5, f=1, buffers="median")


def test_buffers_that_cannot_travel_are_named():
    module = net()
    module.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(
        RunError, match=r"should be a dense tensor of real numbers.*'phase': torch.complex64"
    ):
        varangian.Server(module, workers=5, f=1, buffers="robust")
    assert ModelVector(module).with_buffers is None


def test_a_model_without_the_buffers_of_the_server_is_named(tmp_path):
    server = varangian.Server(net(), workers=3, f=1, buffers="robust", output=str(tmp_path))
    with server.start(note=lambda text: None) as running:
        token = running.token("w00")
        without = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(), nn.Linear(4, 2)
        )
        with pytest.raises(ClientError, match=r"takes 9 numbers of buffers.*Found none"):
            varangian.connect(running.address, without, token=token, name="w00")
        without[1].register_buffer("running_mean", torch.zeros(4))
        with pytest.raises(ClientError, match=r"buffer:1\.running_var"):
            varangian.connect(running.address, without, token=token, name="w00")


def test_statistics_that_are_not_finite_decline_the_round(tmp_path):
    server = varangian.Server(net(), workers=1, f=0, rounds=2, buffers="robust", output=str(tmp_path))
    model = net()
    with (
        server.start(note=lambda text: None) as running,
        varangian.connect(running.address, model, token=running.token("w00"), name="w00") as worker,
    ):
        assert worker.pull()
        assert worker.parameters.numel() == worker.layout.numel == 34
        honest(model, "w00", 0)
        model[1].running_var[0] = torch.nan
        outcome = worker.push()
        assert (outcome.accepted, outcome.code) == (False, "DECLINED")
        assert "buffers of the model have NaN" in outcome.reason


def test_outer_steps_send_what_inner_steps_have_made_of_them(tmp_path):
    known = {"workers": 1, "f": 0, "rounds": 2, "aggregator": "mean", "optimizer": {"lr": 1.0}}
    module, model = net(), net(7)
    server = varangian.Server(module, **known, buffers="robust", output=str(tmp_path))
    inner = torch.optim.SGD(model.parameters(), 0.1)
    with server.start(note=lambda text: None) as running:
        token = running.token("w00")
        with (
            varangian.connect(running.address, model, token=token, name="w00") as worker,
            varangian.outer(model, worker, every=3) as outer,
        ):
            step = 0
            while outer.running:
                inner.zero_grad()
                honest(model, "w00", step)
                inner.step()
                outer.step()
                step += 1
        running.result(patience(60))
    assert step == module[1].num_batches_tracked == 6
    assert torch.equal(module[1].running_mean, model[1].running_mean)
    assert torch.allclose(module[0].weight, model[0].weight, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_names_are_those_of_the_plain_module():
    plain = ModelVector(net()).with_buffers
    wrapped = nn.Sequential(*net())
    wrapped[1] = torch.compile(wrapped[1])
    for one in (torch.compile(net()), nn.DataParallel(net()), wrapped):
        found = ModelVector(one).with_buffers
        assert plain is not None
        assert found is not None
        assert found.text == plain.text


def test_a_mask_of_infinities_is_named_before_the_run(tmp_path):
    """Each worker would decline every round."""
    module = net()
    module.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    server = varangian.Server(
        module, workers=3, f=1, aggregator="median", buffers="robust", output=str(tmp_path)
    )
    with pytest.raises(RunError, match="NaN or infinity in 'mask'"):
        server.start()

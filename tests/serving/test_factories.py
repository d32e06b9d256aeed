"""Optimizers and schedulers that a program makes for its server, and a run that goes on with them."""

import pytest
import torch
from tests.serving.own import net, pull_to_zero
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

import varangian
from varangian.cli.main import main
from varangian.launch.result import RunError
from varangian.registry import ConfigError
from varangian.server.training.optimizers.without_compiler import take_step, without_compiler
from varangian.worker.training.flat import flatten

ONE = {"workers": 1, "f": 0, "aggregator": "mean"}


def in_groups(parameters):
    """Biases are not decayed."""
    thick, flat = ([p for p in parameters if (p.dim() > 1) is wide] for wide in (True, False))
    return AdamW([{"params": thick}, {"params": flat, "weight_decay": 0.0}], 0.1)


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, 10)


def test_a_run_of_one_worker_is_training_with_that_optimizer_and_scheduler(served):
    _, module, *_ = served(**ONE, optimizer=in_groups, schedule=cosine)
    plain = net()
    with without_compiler():
        optimizer = in_groups([*plain.parameters()])
    scheduler = cosine(optimizer)
    for round in range(4):
        slopes = pull_to_zero(flatten(plain), "w00", round).split([p.numel() for p in plain.parameters()])
        for parameter, slope in zip(plain.parameters(), slopes, strict=True):
            parameter.grad = slope.view_as(parameter)
        with torch.no_grad():
            take_step(optimizer)
        scheduler.step()
    assert torch.equal(flatten(module), flatten(plain))


def test_it_goes_on_with_the_same_bits_and_is_recomputed_as_far_as_can_be(served, capsys):
    made = {"optimizer": in_groups, "schedule": cosine, "server__seed": 1}
    checkpoints = {"server__checkpoint": {"every": 2}, "server__keep_rows": 2}
    whole, module, *_ = served(rounds=6, **made)
    half, *_ = served(rounds=4, **made, **checkpoints)
    start = {"resume": half.folder}
    rest, again, _, _, notes = served(net(seed=3), rounds=6, start=start, **made, **checkpoints)
    assert (rest.digest, rest.rounds, rest.folder) == (whole.digest, 6, half.folder)
    assert torch.equal(flatten(again), flatten(module))
    assert any("goes on with round 4 of 6" in note for note in notes)
    assert main(["audit", "--recompute", str(rest.folder)]) == 0
    said = capsys.readouterr().out
    assert "2 rounds, 4 to 5: recomputed from kept rows, the same bits" in said
    assert "steps were not recomputed: a program has the optimizer" in said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"optimizer": lambda ps: SGD(ps, 0.1)}, "optimizer.optimizer: .*'AdamW'. Found 'SGD'"),
        (
            {"optimizer": lambda ps: AdamW(ps, 0.1, weight_decay=0.5)},
            "optimizer.groups: .*_decay 0.5",
        ),
        ({"optimizer": in_groups, "schedule": lambda o: LinearLR(o)}, "optimizer.scheduler"),
        ({"optimizer": "adamw"}, "optimizer: .*'name': 'own'.*Found {'name': 'adamw'"),
        ({}, "should be the optimizer of a program"),
    ],
)
def test_another_optimizer_than_before_is_named(served, tmp_path, other, said):
    before, *_ = served(rounds=1, optimizer=in_groups)
    with pytest.raises((ConfigError, RunError), match=said):
        served(rounds=2, start={"resume": before.folder}, **other)


def test_named_ones_go_together_with_those_of_a_program(served):
    _, first, *_ = served(**ONE, optimizer=lambda ps: SGD(ps, 0.5), schedule="cosine")
    _, second, *_ = served(**ONE, optimizer={"sgd": {"lr": 0.5}}, schedule={"cosine": {}})
    assert torch.equal(flatten(first), flatten(second))
    named = {"name": "sgd", "lr": 0.5}
    _, third, *_ = served(**ONE, optimizer=named, schedule=lambda o: CosineAnnealingLR(o, 4))
    torch.testing.assert_close(flatten(third), flatten(second))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": lambda ps: 3}, "`optimizer` should return an optimizer of `torch.optim`. Found int"),
        ({"optimizer": lambda ps: SGD(net().parameters(), 1.0)}, "step the parameters that it is called"),
        (
            {"optimizer": lambda ps: ps[99]},
            r"`optimizer` failed: IndexError: .*test_factories.py, line",
        ),
        ({"schedule": lambda optimizer: 4}, "`schedule` should return a scheduler"),
        (
            {"optimizer": lambda ps: SGD(ps, 0.1), "schedule": lambda o: OneCycleLR(o, 0.1, total_steps=2)},
            "OneCycleLR should have a step for each of 200 rounds. Found total_steps=2",
        ),
        (
            {"optimizer": lambda ps: SGD(ps, 0.1), "server__fragments": 2, "worker__momentum": 0},
            "optimizer: should have a name with server.fragments=2",
        ),
        ({"optimizer": SGD(net().parameters(), 1.0)}, "optimizer: should be a function.* Found 'SGD'"),
        ({"schedule": LinearLR(SGD(net().parameters(), 1.0))}, "schedule: should be a function"),
    ],
)
def test_what_cannot_be_used_is_named_when_the_server_is_made(wrong, said):
    with pytest.raises((ConfigError, RunError), match=said):
        varangian.Server(net(), **wrong, **ONE)


def test_an_optimizer_that_fails_in_a_round_ends_the_run_with_its_sentence(served):
    class Fails(SGD):
        rounds = 0

        def step(self, closure=None):
            Fails.rounds += 1
            if Fails.rounds > 3:
                raise KeyError("state")
            return super().step(closure)

    module = nn.Sequential(*net())
    start = flatten(module)
    with pytest.raises(RunError, match=r"optimizer.*KeyError: 'state'"):
        served(module, **ONE, optimizer=lambda ps: Fails(ps, 0.1))
    assert not torch.equal(flatten(module), start)  # it has the parameters of the last round

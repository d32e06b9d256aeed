"""A run of one honest worker with the mean is plain training: every optimizer of torch at the server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import varangian
from varangian.config import load
from varangian.config.build import task
from varangian.server.training.optimizers import OPTIMIZERS, Optimizer, OwnOptimizer
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.flat import flatten
from varangian.worker.training.trainer import build_model

ROUNDS = 10
SETTINGS = [
    *("workers=1", "f=0", "aggregator=mean", "worker.momentum=0", f"rounds={ROUNDS}", "data=digits"),
    *("model={mlp: {hidden: [16, 9]}}", "backend=simulate", "evaluate.every=100"),
]
FUSED = ("adam", "adamw", "adagrad")
"""Named ones take the fused kernel of torch, which rounds differently from the plain one, and differently
at the end of a tensor: there is one end in a vector of all parameters."""
CLASSES = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__ if name[0].isupper()}
LEFT_OUT = {"optimizer", "lbfgs", "sparseadam"}
"""The base class; one that needs a closure; one that takes no dense gradients."""
DENSE = sorted(CLASSES.keys() - LEFT_OUT)
QUICK = ("adamw", "muon")
"""The others run with `--all`; `tests/server/training` compares the steps of each with those of torch."""
EACH = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive, id=name) for name in DENSE
]
LR = {"sgd": 0.3, "asgd": 0.3, "adadelta": 1.0}
Make = Callable[[list[torch.nn.Parameter]], "torch.optim.Optimizer | list[torch.optim.Optimizer]"]


def make(name: str, **options: bool) -> Make:
    lr = LR.get(name, 0.01)
    if name == "muon":
        return lambda ps: [
            torch.optim.Muon([p for p in ps if p.dim() == 2], lr),
            torch.optim.AdamW([p for p in ps if p.dim() != 2], lr, **options),
        ]
    return lambda ps: CLASSES[name](ps, lr, **options)


def plain_training(make: Make) -> torch.Tensor:
    """A training loop as anybody writes it, on the batches of that worker."""
    config = load(overrides=SETTINGS)
    compute = WorkerCompute(task(config))
    model = build_model(config.model, compute.dataset, config.seed)
    found = make([*model.parameters()])
    optimizers = found if isinstance(found, list) else [found]
    for round in range(ROUNDS):
        x, y = compute.trainer.batch(compute.batches.indices("w00", round, 0))
        for one in optimizers:
            one.zero_grad()
        torch.nn.functional.cross_entropy(model(x.float()), y).backward()
        for one in optimizers:
            one.step()
    return flatten(model)


def trained(tmp_path: Path, optimizer: Optimizer) -> tuple[torch.Tensor, str]:
    config = load(overrides=SETTINGS).model_copy(update={"optimizer": optimizer})
    result = varangian.run(config, folder=tmp_path / "run")
    model = varangian.load(tmp_path / "run")
    assert isinstance(model, torch.nn.Module)
    return flatten(model), result.digest


def test_every_class_of_torch_has_a_name():
    assert {*DENSE} <= {*OPTIMIZERS}


@pytest.mark.parametrize("name", EACH)
def test_the_optimizer_of_a_program_through_the_server_is_plain_training_to_the_bit(
    name: str, tmp_path: Path
):
    shapes = WorkerCompute(task(load(overrides=SETTINGS))).layout.shapes
    expected = plain_training(make(name))
    found, digest = trained(tmp_path, OwnOptimizer.of(make(name), shapes))
    assert torch.equal(found, expected)
    assert hashlib.blake2b(expected.numpy().tobytes(), digest_size=16).hexdigest() == digest


@pytest.mark.parametrize("name", EACH)
def test_a_named_optimizer_through_the_server_is_plain_training(name: str, tmp_path: Path):
    lr = LR.get(name, 0.01)
    settings = {"lr": lr, "adamw_lr": lr} if name == "muon" else {"lr": lr}
    found, _ = trained(tmp_path, OPTIMIZERS.build({name: settings}, ""))
    if name in FUSED:
        assert torch.allclose(found, plain_training(make(name)), rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(found, plain_training(make(name, **({"fused": True} if name == "muon" else {}))))

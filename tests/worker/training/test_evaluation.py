"""Evaluations: in batches of bounded memory, and of a fixed sample of the training data."""

import torch
from torch import nn

from varangian.worker.data.synthetic import Synthetic
from varangian.worker.training import trainer as module
from varangian.worker.training.device import MemoryFootprint
from varangian.worker.training.models import Mlp
from varangian.worker.training.trainer import Objective, Trainer


def trained(hidden=64):
    data = Synthetic().load()
    return Trainer(Mlp(hidden=hidden), data, Objective(), 1, torch.device("cpu"))


def test_the_footprint_is_what_is_alive_at_the_same_time():
    layers = nn.Sequential(*(nn.Linear(100, 100) for _ in range(9)))
    x = torch.randn(50, 100)
    with torch.no_grad(), MemoryFootprint([*layers.parameters(), x]) as footprint:
        kept = [layers(x) for _ in range(3)]
    row = 50 * 100 * 4
    # Two that are kept, and input and output of the layer at hand.
    assert footprint.peak == 4 * row
    del kept


def test_a_large_model_is_evaluated_in_smaller_batches(monkeypatch):
    whole = trained()
    flat = 0.1 * torch.randn(whole.layout.numel)
    expected = whole.evaluate(flat)
    monkeypatch.setattr(module, "EVALUATION_BYTES", whole.evaluation_bytes // 100)
    parts = trained()
    assert parts.evaluation_bytes <= module.EVALUATION_BYTES
    found = parts.evaluate(flat)
    assert abs(found["loss"] - expected["loss"]) < 1e-5
    assert found["accuracy"] == expected["accuracy"]


def test_the_training_loss_is_of_the_same_samples_every_time():
    trainer = trained()
    flat = 0.1 * torch.randn(trainer.layout.numel)
    loss = trainer.training_loss(flat)
    assert loss == trainer.training_loss(flat) == trained().training_loss(flat)
    assert 0 < loss < 10

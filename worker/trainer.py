"""A model and a data set: gradients and held-out accuracy for whatever parameters it is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from varangian.protos.layout import Layout
from varangian.worker.data import Dataset
from varangian.worker.flat import check_model, joined, layout_of, load, trainable
from varangian.worker.models import Model
from varangian.worker.streams import globally_seeded

EVALUATION_BATCH = 1000


class Trainer:
    """Keeps no state between calls but the memory of the model.

    Args:
        model: what to build.
        dataset: what to train on.
        seed: of the run.
        device: where to compute; vectors that come and go are on the CPU.
    """

    def __init__(self, model: Model, dataset: Dataset, seed: int, device: torch.device) -> None:
        self._dataset = dataset
        self._seed = seed
        self._device = device
        self._module = built(model, dataset, seed).to(device)
        self.layout: Layout = layout_of(self._module)
        sample = dataset.prepared(dataset.train_x[:2], device)
        with globally_seeded(seed, "trial", device=device):
            check_model(self._module, sample, dataset.classes)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Training samples as the model takes them, on the device."""
        x = self._dataset.prepared(self._dataset.train_x[indices], self._device)
        return x, self._dataset.train_y[indices].to(self._device)

    def gradient(self, parameters: Tensor, x: Tensor, y: Tensor, *purpose: str | int) -> Tensor:
        """Of the mean cross entropy, (d,) on the CPU; dropout draws from the stream `purpose`."""
        load(self._module, parameters)
        self._module.train()
        weights = [p for _, p in trainable(self._module)]
        with globally_seeded(self._seed, *purpose, device=self._device):
            loss = cross_entropy(self._module(x), y)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return joined([*gradients])

    @torch.no_grad()
    def evaluate(self, parameters: Tensor) -> tuple[float, float]:
        """Mean cross entropy and accuracy on the held-out samples."""
        load(self._module, parameters)
        self._module.eval()
        x, y = self._dataset.test_x, self._dataset.test_y
        loss, correct = 0.0, 0
        for x_part, y_part in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            scores = self._module(self._dataset.prepared(x_part, self._device))
            labels = y_part.to(self._device)
            loss += float(cross_entropy(scores, labels, reduction="sum"))
            correct += int((scores.argmax(dim=1) == labels).sum())
        return loss / len(y), correct / len(y)


def built(model: Model, dataset: Dataset, seed: int) -> nn.Module:
    """A model with its initial parameters, on the CPU so that they are the same for every device."""
    with globally_seeded(seed, "initial", device=torch.device("cpu")):
        return model.build(dataset.features, dataset.classes)

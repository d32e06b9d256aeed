"""The model, the data of each client, and training on it."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

CLIENTS = 10
HELD_OUT = 300
"""Examples that no client has."""


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def data(client: int | None) -> tuple[Tensor, Tensor]:
    """The share of a client; what is held out for None."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    mine = order[:HELD_OUT] if client is None else order[HELD_OUT + client :: CLIENTS]
    return torch.tensor(images[mine] / 16, dtype=torch.float32), torch.tensor(labels[mine])


def train(model: nn.Module, client: int, steps: int = 20) -> float:
    images, labels = data(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def accuracy(model: nn.Module) -> float:
    images, labels = data(None)
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()

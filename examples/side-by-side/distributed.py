"""Handwritten digits, as one worker of a server."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import varangian

torch.manual_seed(int(os.environ.get("SEED", "0")))
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
worker = varangian.connect(os.environ.get("SERVER", "127.0.0.1:50051"), model)

for _ in range(20):
    for inputs, targets in loader:
        if not worker.pull():
            break
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        worker.push()

accuracy = (model(images).argmax(1) == labels).float().mean().item()
print(f"accuracy {accuracy:.3f}")

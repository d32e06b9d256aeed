"""Networks of users with buffers that training changes."""

import torch
from torch import nn


class Counting(nn.Module):
    """Counts samples in an integer, sees its own count, and has BatchNorm."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool), persistent=False)
        self.body = nn.Sequential(
            nn.Flatten(), nn.LazyLinear(width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return self.body(x)


def counting(features, outputs):
    return Counting()

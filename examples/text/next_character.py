"""A language model of characters, on a text that comes with Python: nothing is downloaded."""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

FIRST, CHARACTERS = 32, 96
"""The printable part of ASCII; whatever else there is becomes a space."""


def reference(
    length: int = 32, train: int = 2000, test: int = 200
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pieces of Python's reference, and for each character the next one: integers (N, length)."""
    text = " ".join(topics[name] for name in sorted(topics))
    codes = [ord(character) - FIRST for character in text[: (train + test) * length + 1]]
    ids = torch.tensor([code if 0 <= code < CHARACTERS else 0 for code in codes])
    x, y = ids[:-1].view(-1, length), ids[1:].view(-1, length)
    return x[:train], y[:train], x[train:], y[train:]


class Characters(nn.Module):
    """An embedding, a recurrent layer, and scores of the next character at each place."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.scores = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        remembered, _ = self.memory(self.embedding(ids))
        return self.scores(remembered)


def build(features: tuple[int, ...], classes: int, width: int = 48) -> nn.Module:
    """The model; `features` is the shape of one sample, (length,)."""
    return Characters(width, classes)


def perplexity(outputs: Tensor, targets: Tensor) -> Tensor:
    """Among how many characters the model hesitates: (N, length, classes) against (N, length)."""
    return cross_entropy(outputs.flatten(0, 1), targets.flatten()).exp()

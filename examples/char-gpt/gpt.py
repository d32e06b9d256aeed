"""A GPT of characters, on a copy of this project's documentation: nothing is downloaded."""

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

FIRST, CHARACTERS = 32, 96
"""The printable part of ASCII; whatever else there is becomes a space."""
TEXT = Path(__file__).resolve().parent / "text.txt.gz"
"""Pages of `docs/` as they once were: the copy stays as it is, so that runs can be repeated."""


def documentation(length: int = 64, test: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pieces of the text, and for each character the next one: integers (N, length).

    Every tenth piece is held out, up to `test` of them.
    """
    text = gzip.decompress(TEXT.read_bytes()).decode()
    codes = torch.tensor(
        [min(max(ord(character) - FIRST, 0), CHARACTERS) % CHARACTERS for character in text]
    )
    pieces = (len(codes) - 1) // length
    x, y = (codes[start : start + pieces * length].view(pieces, length) for start in (0, 1))
    held = torch.arange(pieces) % 10 == 9
    return x[~held], y[~held], x[held][:test], y[held][:test]


class Block(nn.Module):
    """Causal self-attention and a layer of neurons, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.neurons = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attend(self.norms[0](x)).chunk(3, dim=-1)
        )
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(-2))
        return x + self.neurons(self.norms[1](x))


class GPT(nn.Module):
    """A decoder-only transformer with learned places."""

    def __init__(self, length: int, classes: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, classes)
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.characters(ids) + self.places.weight[: ids.shape[1]]
        return self.scores(self.norm(self.blocks(x)))


def build(
    features: tuple[int, ...] = (64,),
    classes: int = CHARACTERS,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
) -> nn.Module:
    """The model; `features` is the shape of one sample, (length,)."""
    return GPT(features[0], classes, width, layers, heads)


def perplexity(outputs: Tensor, targets: Tensor) -> Tensor:
    """Among how many characters the model hesitates: (N, length, classes) against (N, length)."""
    return cross_entropy(outputs.flatten(0, 1), targets.flatten()).exp()

"""Parts of a user: rules, mixings, attacks, partitions and metrics, good and bad ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class TrimmedSum:
    """The sum of each coordinate without its k largest and smallest values."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"`k` should be at least 1. Found {self.k}.")

    def requires(self, n, f):
        return None if n > 2 * self.k >= 2 * f else f"it needs n > 2 k >= 2 f, and k is {self.k}"

    def columnwise(self, block):
        return block.sort(dim=0).values[self.k : len(block) - self.k].sum(dim=0)


class Weighted:
    """No dataclass: the parameters of the constructor are the settings."""

    def __init__(self, f: int, scale: float = 1.0, labels: list[int] = [1, 2]):  # noqa: B006 - as users write it
        self.f, self.scale, self.labels = f, scale, labels

    def requires(self, n, f):
        return None

    def __call__(self, gram):
        return [self.scale / len(gram)] * len(gram)

    def explain(self, gram):
        return {"norm": gram.norms}


class Forgetful:
    def __init__(self, k: int):
        self.other = k

    def requires(self, n, f):
        return None

    def columnwise(self, block):
        return block[0]


class Loose:
    def __init__(self, **options):
        pass

    def requires(self, n, f):
        return None

    def columnwise(self, block):
        return block[0]


class Nothing:
    pass


@dataclass(frozen=True)
class Failing:
    what: str = "raise"

    def requires(self, n, f):
        return 1 / 0 if self.what == "requires" else True if self.what == "true" else None

    def columnwise(self, block):
        return {"raise": lambda: 1 / 0, "wide": lambda: block, "nan": lambda: block[0] * torch.nan}[
            self.what
        ]()


@dataclass(frozen=True)
class Doubled:
    factor: float = 2.0

    def requires(self, n, f):
        return None

    def outputs(self, n):
        return n

    def mix(self, gram, rng):
        return self.factor * torch.eye(len(gram))


def trimmed(G, f, power: int = 1):
    """A rule as a function."""
    return G.sort(dim=0).values[f : len(G) - f].mean(dim=0) ** power


def of_nothing():
    return None


def late(G, f):
    late.calls = getattr(late, "calls", 0) + 1
    if late.calls == 3:
        raise KeyError("oops")
    return G.mean(dim=0) * (float("nan") if late.calls == 4 else 1)


@dataclass(frozen=True)
class Shift:
    needs: ClassVar[str] = "all"
    z: float = 2.0

    def requires(self, n, f, seen):
        return "z is too large" if self.z > 9 else None

    def __call__(self, own, knows):
        return knows.honest.mean(dim=0) - self.z * knows.honest.std(dim=0)


class Blind:
    def __call__(self, own, knows):
        return own


def aimed(own, knows, target: int, options: str = "none", function: float = 2.0):
    return own * function * target


def flip(own, knows, scale: float = 3.0):
    own *= -scale
    return own


def short(own, knows):
    return own[:2]


def tardy(own, knows):
    return own if knows.round != 1 else 1 / 0


@dataclass(frozen=True)
class Drifting:
    """Remembers the honest mean of all rounds, asks the rule, is silent in some rounds, and comes late."""

    needs: ClassVar[str] = "all"
    joint: ClassVar[bool] = True
    silent: int = 4
    seconds: float = 0.0

    def start(self):
        return None

    def step(self, own, knows, memory):
        mean = knows.honest.mean(dim=0)
        memory = mean.clone() if memory is None else memory + mean
        if knows.round % self.silent == self.silent - 1:
            return None, memory
        if knows.rule is not None:
            mean = knows.rule(torch.cat([knows.honest, knows.honest[: knows.f]]))
        return 0.01 * knows.model - memory - mean, memory

    def delay(self, honest, round, rng):
        return self.seconds if round != 2 or self.seconds != 9.0 else 1 / 0


class Relabel:
    def poisons(self, x, y, classes, rng):
        return x, 0 * y


class Skewed:
    by_label = True

    def __init__(self, keep: int = 100):
        self.keep = keep

    def split(self, labels, workers, seed):
        return [part[: self.keep].flip(0) for part in labels.argsort(stable=True).tensor_split(workers)]


def one_for_all(labels, workers, seed):
    return [[0]] * workers


def of_the_first(labels, workers, seed):
    return [torch.arange(3)] + [torch.arange(0)] * (workers - 1)


def beyond(labels, workers, seed):
    return [[len(labels)]] * workers


class Recall:
    def __init__(self, label: int = 0):
        self.label = label

    def __call__(self, outputs, targets):
        chosen = targets == self.label
        found = (outputs.argmax(1)[chosen] == self.label).float()
        return {"share": found.sum() / max(1, len(found)), "of": len(found)}


def low(inputs, targets, below=5):
    return targets < below


def places(inputs, targets):
    return torch.tensor([0])


def short_rule(G):
    return G[0, :2]


def make():
    class Inner(Nothing):
        requires = columnwise = TrimmedSum.requires

    return Inner


Made = make()

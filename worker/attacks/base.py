"""The interface of an attack: a function of the honest vector and of the adversary's knowledge.

n  workers     f  of them attack, together     d  parameters     k  vectors the adversary sees

An attack is pure. Its randomness comes from the generator in its knowledge, one for each attacker and
round, so f attackers can send f different vectors and a replay sends the same ones again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from varangian.registry import Registry

P = ParamSpec("P")

Sight: TypeAlias = Literal["own", "colluders", "all"]
"""The honest vectors that an adversary sees: its own, those of attackers, or those of all others."""
SIGHTS: tuple[Sight, ...] = ("own", "colluders", "all")
"""From the least to the most."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """The knowledge of one attacker in one round."""

    honest: Tensor
    """(k, d), rows by worker name. own: its own honest vector. colluders: what the f attackers would send
    if they were honest. all: what the n - f honest workers do send."""
    n: int
    f: int
    """The number of attackers; the server may have been told another one."""
    rank: int
    """This attacker among the f, from 0."""
    round: int
    rng: torch.Generator
    """Of this attacker in this round, on the CPU."""


@runtime_checkable
class GradientAttack(Protocol):
    """An attack on the vector: sends another one than the honest one."""

    needs: ClassVar[Sight]
    """The least that it must see to mean anything."""

    def __call__(self, own: Tensor, knows: Knowledge, /) -> Tensor:
        """The vector to send, like `own` in shape and dtype; must not write to what it is given."""
        ...


@runtime_checkable
class DataAttack(Protocol):
    """Data poisoning: an honest computation on bad samples."""

    def poisons(self, x: Tensor, y: Tensor, classes: int, rng: torch.Generator, /) -> tuple[Tensor, Tensor]:
        """The batch to train on; must not write to what it is given."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """A gradient attack with a condition on the numbers of workers."""

    def requires(self, n: int, f: int, seen: int, /) -> str | None:
        """Why f attackers among n workers who see `seen` vectors cannot mount it; None if they can."""
        ...


Attack: TypeAlias = GradientAttack | DataAttack

ATTACKS: Registry[Attack] = Registry("attack")


def corrupt(
    compute: Callable[P, Tensor],
    attack: GradientAttack,
    knows: Callable[Concatenate[Tensor, P], Knowledge],
) -> Callable[P, Tensor]:
    """Decorate an honest computation with an attack; the result is called like the honest one.

    Args:
        compute: the honest computation.
        attack: applied to its result.
        knows: the knowledge at that moment, from the honest result and the arguments of the call.
    """

    def compute_and_attack(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        own = compute(*args, **kwargs)
        return attack(own, knows(own, *args, **kwargs))

    return compute_and_attack


def check_positive(**values: float) -> None:
    """Check fields of an attack, in `__post_init__`.

    Raises:
        ValueError: one is not a positive, finite number.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` should be a positive, finite number. Found {value}.")


def why_impossible(attack: Attack, n: int, f: int, sight: Sight | None = None) -> str | None:
    """Why f of n workers cannot mount an attack with their sight; None if they can.

    Args:
        attack: any attack.
        n: all workers.
        f: how many attack, at least 1.
        sight: what they see; None is what the attack needs.
    """
    if not isinstance(attack, GradientAttack):
        return None
    sight = sight or attack.needs
    if SIGHTS.index(sight) < SIGHTS.index(attack.needs):
        return f"it needs to know {attack.needs!r}, and `knows` is {sight!r}"
    seen = {"own": 1, "colluders": f, "all": n - f}[sight]
    if seen == 0:
        return "there is no honest worker to look at"
    return attack.requires(n, f, seen) if isinstance(attack, Conditional) else None

"""The interface of an attack: a function of the honest vector and of the adversary's knowledge.

n  workers     f  of them attack, together     d  parameters     k  vectors the adversary sees

An attack is pure. Its randomness comes from the generator in its knowledge, one for each attacker and
round, so f attackers can send f different vectors and a replay sends the same ones again.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from varangian.own_classes import OwnClasses, OwnFunction, is_own, named
from varangian.plugins import InputError, describe_error, guard
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
class JointAttack(GradientAttack, Protocol):
    """An attack in which all attackers who see the same vectors send the same one."""

    joint: ClassVar[bool]


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


class AttackError(InputError):
    """An attack of the user that failed, or returned what cannot be sent; the text says what."""


class FunctionAttack(OwnFunction):
    """An attack that is a function of the user: called with its honest vector and its `Knowledge`.

    Its other parameters are its settings. `byzantine.knows` says what it sees.
    """

    function_given: ClassVar[tuple[str, ...]] = ("own", "knows")
    needs: ClassVar[Sight] = "own"

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        vector: Tensor = self.call_function(own, knows)
        return vector


def _lacks(cls: type[Any]) -> str:
    if hasattr(cls, "poisons"):
        return ""
    if not any("__call__" in vars(base) for base in cls.__mro__):
        return (
            "should have the methods of an attack. It lacks `__call__(own, knows)`, which returns the "
            "vector to send; an attack on data has `poisons(x, y, classes, rng)`"
        )
    if getattr(cls, "needs", None) not in SIGHTS:
        expected = ", ".join(map(repr, SIGHTS))
        return f"should say what it must see, as `needs: ClassVar = ...` with one of {expected}"
    return ""


ATTACKS: Registry[Attack] = Registry("attack", OwnClasses(_lacks, FunctionAttack))


def once_for_all(attack: GradientAttack) -> GradientAttack | OnceForAll:
    """An attack whose vector is computed once a round, where it is the same for all attackers."""
    joint = isinstance(attack, JointAttack) and attack.joint and not is_own(attack)
    return OnceForAll(attack) if joint else attack


class OnceForAll:
    """A joint attack that returns its last vector as long as attackers see the same tensor."""

    def __init__(self, attack: GradientAttack) -> None:
        self._attack = attack
        self._seen: weakref.ref[Tensor] | None = None
        self._sent: Tensor | None = None

    def __call__(self, own: Tensor, knows: Knowledge) -> Tensor:
        if self._sent is None or self._seen is None or self._seen() is not knows.honest:
            self._sent = self._attack(own, knows)
            self._seen = weakref.ref(knows.honest)
        return self._sent


def mount(attack: GradientAttack | OnceForAll, own: Tensor, knows: Knowledge) -> Tensor:
    """The vector that an attacker sends; an attack of the user is given a copy of its own vector.

    Raises:
        AttackError: an attack of the user fails, or does not return a vector like `own`.
    """
    if isinstance(attack, OnceForAll) or not is_own(attack):
        return attack(own, knows)
    with _of_the_user(attack):
        sent: Any = attack(own.clone(), knows)
        _check_like(attack, "", sent, own)
        return sent.detach().to(own)  # type: ignore[no-any-return]


def poison(attack: DataAttack, x: Any, y: Tensor, classes: int, rng: torch.Generator) -> tuple[Any, Tensor]:
    """The batch that an attacker trains on.

    Raises:
        AttackError: an attack of the user fails, or does not return as many samples.
    """
    if not is_own(attack):
        return attack.poisons(x, y, classes, rng)
    with _of_the_user(attack):
        bad: Any = attack.poisons(x, y, classes, rng)
        if not isinstance(bad, tuple) or len(bad) != 2:
            found = type(bad).__name__
            raise AttackError(f"`poisons` of {named(attack)} should return (x, y). Found {found}.")
        _check_like(attack, "targets in ", bad[1], y)
        return bad


@contextmanager
def _of_the_user(attack: Attack) -> Generator[None]:
    with guard(f"`byzantine.attack` {named(attack)!r}", "", named(attack), AttackError):
        yield


def _check_like(attack: Attack, what: str, found: object, wanted: Tensor) -> None:
    """See that an attack of the user returned a tensor of the shape of another one."""
    if isinstance(found, Tensor) and found.shape == wanted.shape:
        return
    shape = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise AttackError(
        f"`byzantine.attack` {named(attack)!r} should return {what}a tensor of shape {list(wanted.shape)}. "
        f"Found {shape}."
    )


def corrupt(
    compute: Callable[P, Tensor],
    attack: GradientAttack | OnceForAll,
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
        return mount(attack, own, knows(own, *args, **kwargs))

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
    if not isinstance(attack, Conditional):
        return None
    try:
        return attack.requires(n, f, seen)
    except Exception as error:
        if not is_own(attack):
            raise
        return f"its `requires` failed: {describe_error(error, named(attack))}"

"""The interface of an attack: a function of the honest vector and of the adversary's knowledge.

n  workers     f  of them attack, together     d  parameters     k  vectors the adversary sees

An attack is pure. Its randomness comes from the generator in its knowledge, one for each attacker and
round, so f attackers can send f different vectors and a replay sends the same ones again. One that depends
on earlier rounds is given its memory, and returns the next one. `mounted` keeps it for a process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from varangian.aggregators.numeric.shares import Shares
from varangian.aggregators.pipeline import shares_of
from varangian.own_classes import OwnClasses, OwnFunction, is_own, named
from varangian.plugins import InputError, describe_error
from varangian.registry import Registry
from varangian.worker.attacks.live_rule import LiveRule
from varangian.worker.attacks.on_protocol import ProtocolAttack

Sight: TypeAlias = Literal["own", "colluders", "all"]
"""The honest vectors that an adversary sees: its own, those of attackers, or those of all others."""
SIGHTS: tuple[Sight, ...] = ("own", "colluders", "all")
"""From the least to the most."""


Sent: TypeAlias = Tensor | tuple[Tensor | None, ...] | None
"""The answer of attackers: a vector (d,), or None for nothing; of a joint attack, a tuple has that of each
of the f attackers, by rank."""


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
    """Of this attacker in this round, on the CPU; of a joint attack all have the same."""
    model: Tensor
    """(d,), the parameters that the server sent for this round, on the device of `honest`."""
    rule: LiveRule | None = None
    """The rule of the server. Only known to an attacker who sees all, and None in a round with fewer
    vectors than the rule takes, which has no update."""
    names: tuple[str, ...] = ()
    """The workers of the rows of `honest`: with `availability` others in each round."""
    blocks: tuple[int, ...] = ()
    """Sizes of the parameter tensors of the model, which make up the d coordinates in this order."""
    found: dict[int, Any] = field(default_factory=dict[int, Any])
    """Of those who see these vectors in this process: what one of them has computed for all (`nested`)."""

    @property
    def shares(self) -> Shares | None:
        """Weights of the honest rows, and then of the f of attackers; None where all weigh the same."""
        if self.rule is None:
            return None
        n = len(self.honest) + self.f
        return shares_of(self.rule.weights_of(n), n)


@runtime_checkable
class GradientAttack(Protocol):
    """An attack on the vector: sends another one than the honest one."""

    @property
    def needs(self) -> Sight:
        """The least that it must see to mean anything; of most attacks an attribute of the class.

        One that usually sees more has an attribute `usual`.
        """
        ...

    def __call__(self, own: Tensor, knows: Knowledge, /) -> Sent:
        """The vector to send, like `own` in shape and dtype; None sends nothing in this round.

        Must not write to what it is given.
        """
        ...


@runtime_checkable
class RememberingAttack(Protocol):
    """An attack on the vector that depends on earlier rounds.

    A class that only remembers with some of its settings also has `__call__`, and an attribute
    `remembers`, which says whether its memory is in use.
    """

    @property
    def needs(self) -> Sight: ...

    def start(self) -> Any:
        """Its memory before the first round."""
        ...

    def step(self, own: Tensor, knows: Knowledge, memory: Any, /) -> tuple[Sent, Any]:
        """The vector to send, as `GradientAttack.__call__`, and the memory afterwards.

        Called once for each round in which the attacker takes part. Must not write to `memory`, but may
        return it as it is. What it keeps of `own` and `knows` it clones: their memory is used again.
        """
        ...


@runtime_checkable
class JointAttack(Protocol):
    """An attack in which attackers who see the same vectors know what each of them sends.

    So it looks neither at `own` nor at `rank`, and is computed once a round. All send its vector, or each
    its own of a tuple. One that remembers has one memory for all attackers, which follows every round in
    which an attacker sees a vector of another.
    """

    @property
    def joint(self) -> bool: ...


@runtime_checkable
class Timed(Protocol):
    """An attack that chooses when its vector is pushed."""

    def delay(self, honest: float, round: int, rng: torch.Generator, /) -> float:
        """Seconds that an attacker waits before it pushes, in place of the honest delay."""
        ...


@runtime_checkable
class DataAttack(Protocol):
    """Data poisoning: an honest computation on bad samples."""

    def poisons(self, x: Tensor, y: Tensor, classes: int, rng: torch.Generator, /) -> tuple[Tensor, Tensor]:
        """The batch to train on; must not write to what it is given."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """An attack on the vector with a condition on the numbers of workers."""

    def requires(self, n: int, f: int, seen: int, /) -> str | None:
        """Why f attackers among n workers who see `seen` vectors cannot mount it; None if they can."""
        ...


VectorAttack: TypeAlias = GradientAttack | RememberingAttack
Attack: TypeAlias = VectorAttack | DataAttack | ProtocolAttack


class AttackError(InputError):
    """An attack of the user that failed, or returned what cannot be sent; the text says what."""


class FunctionAttack(OwnFunction):
    """An attack that is a function of the user: called with its honest vector and its `Knowledge`.

    Its other parameters are its settings. `byzantine.knows` says what it sees.
    """

    function_given: ClassVar[tuple[str, ...]] = ("own", "knows")
    needs: ClassVar[Sight] = "own"

    def __call__(self, own: Tensor, knows: Knowledge) -> Sent:
        vector: Sent = self.call_function(own, knows)
        return vector


def _lacks(cls: type[Any]) -> str:
    if hasattr(cls, "poisons") or hasattr(cls, "send"):
        return ""
    steps = [hasattr(cls, name) for name in ("start", "step")]
    if any(steps) and not all(steps):
        missing = "`start()`, its memory" if steps[1] else "`step(own, knows, memory)`"
        return f"should have `start` and `step` if it remembers earlier rounds. It lacks {missing}"
    if not any(steps) and not any("__call__" in vars(base) for base in cls.__mro__):
        return (
            "should have the methods of an attack. It lacks `__call__(own, knows)`, which returns the "
            "vector to send; one that remembers earlier rounds has `start()` and "
            "`step(own, knows, memory)`, one on data `poisons(x, y, classes, rng)`, one on the protocol "
            "`async def send(line, round, vector, rng)`"
        )
    needs = getattr(cls, "needs", None)
    if needs not in SIGHTS and not isinstance(needs, property):
        expected = ", ".join(map(repr, SIGHTS))
        return f"should say what it must see, as `needs: ClassVar = ...` with one of {expected}"
    return ""


ATTACKS: Registry[Attack] = Registry("attack", OwnClasses(_lacks, FunctionAttack))


def on_vectors(attack: Attack | None) -> TypeGuard[VectorAttack]:
    """Whether an attack changes the vector that is sent."""
    return isinstance(attack, GradientAttack | RememberingAttack)


def inner_attack(attack: Attack | None) -> Attack | None:
    """The attack on the vector or the data, which makes what is sent; None is honest.

    An attack on the protocol has it in its field `attack`, or none.
    """
    return getattr(attack, "attack", None) if isinstance(attack, ProtocolAttack) else attack


def remembers(attack: Attack | None) -> TypeGuard[RememberingAttack]:
    """Whether an attack depends on earlier rounds."""
    return isinstance(attack, RememberingAttack) and bool(getattr(attack, "remembers", True))


def is_joint(attack: Attack | None) -> bool:
    """Whether all attackers who see the same vectors send the same one."""
    return isinstance(attack, JointAttack) and bool(attack.joint)


def sight_of(attack: VectorAttack, knows: Sight | None = None) -> Sight:
    """The honest vectors that attackers see: those of the setting `knows`, or those that are usual."""
    usual: Sight = getattr(attack, "usual", attack.needs)
    return knows or usual


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
        sight: what they see; None is what is usual for the attack.
    """
    if not on_vectors(attack):
        return None
    sight = sight_of(attack, sight)
    if SIGHTS.index(sight) < SIGHTS.index(attack.needs):
        return f"it needs to know {attack.needs!r}, and `knows` is {sight!r}"
    seen = {"own": 1, "colluders": f, "all": n - f}[sight]
    if seen == 0:
        return "there is no honest worker to look at"
    return why_not(attack, n, f, seen)


def why_not(attack: VectorAttack, n: int, f: int, seen: int) -> str | None:
    """Why f of n workers who see so many vectors cannot mount an attack; None if they can."""
    if not isinstance(attack, Conditional):
        return None
    try:
        return attack.requires(n, f, seen)
    except Exception as error:
        if not is_own(attack):
            raise
        return f"its `requires` failed: {describe_error(error, named(attack))}"

"""Mounting an attack: its memory in this process, and checks of what code of the user sends."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.own_classes import is_own, named, shown
from varangian.plugins import guard
from varangian.state_file import Tree
from varangian.worker.attacks.base import (
    Attack,
    AttackError,
    DataAttack,
    GradientAttack,
    Knowledge,
    RememberingAttack,
    Sent,
    Sight,
    Timed,
    VectorAttack,
    is_joint,
    remembers,
)
from varangian.worker.attacks.memory import NO_MEMORY, pack, packed, unpack, unpacked

TOGETHER = ""
"""In place of a name, where all attackers of the process share a vector and a memory."""


@dataclass(frozen=True, eq=False)
class _Last:
    """The last round of an attacker, or of all together."""

    round: int
    sent: Sent
    memory: Any
    """After the round."""


class MountedAttack:
    """An attack on vectors as the attackers of one process mount it.

    A joint attack is computed once a round for all attackers, and one that remembers is stepped once a
    round: a round that is asked for again gives the same vector. The memory is that of an attacker, or of
    all together where the attack is joint. An attack of the user is given copies, and each attacker mounts
    it alone.

    Args:
        attack: on vectors.
        sight: what the attackers see.
    """

    def __init__(self, attack: VectorAttack, sight: Sight) -> None:
        self._attack, self._sight = attack, sight
        self._remembering = attack if remembers(attack) else None
        self.shared = is_joint(attack) and sight != "own" and not is_own(attack)
        """Whether the attack is computed once for all attackers."""
        self._last: dict[str, _Last] = {}

    def __call__(self, name: str, own: Tensor, knows: Knowledge, *, alone: bool = False) -> Tensor | None:
        """The vector that an attacker sends, not to be written to; None sends nothing.

        Args:
            name: of the attacker.
            own: its honest vector.
            knows: of this attacker in this round.
            alone: whether it sees no vector but its own, though it could see others. A joint attack
                remembers what all attackers see, and so not this round.

        Raises:
            AttackError: an attack of the user fails, or does not return a vector like `own`; or the rule of
                the server fails, which an attack asks.
            ValueError: an attack that remembers is asked for a round before its last one.
        """
        if self._remembering is None and not self.shared:
            return of_attacker(self._computed(own, knows, None)[0], knows)
        last = self._last.get(self._key(name))
        kept = not (self.shared and alone)
        if last is not None and last.round == knows.round and kept:
            return of_attacker(last.sent, knows)
        if last is not None and knows.round < last.round and self._remembering is not None:
            raise ValueError(
                f"Rounds should not go back. Found round {knows.round} of {name} after {last.round}."
            )
        sent, memory = self._computed(own, knows, last)
        if kept:
            self._last[self._key(name)] = _Last(knows.round, sent, memory)
        return of_attacker(sent, knows)

    def round(self, key: str) -> int | None:
        """The last round of an attacker, or of `TOGETHER`; None if the next needs no earlier one."""
        last = self._last.get(key) if self._remembering is not None else None
        return None if last is None else last.round

    def state(self, key: str) -> Tree:
        """The last round of an attacker, or of `TOGETHER`, and its memory after it, for `restore`.

        Raises:
            Unpackable: the memory of an attack of the user cannot be kept.
        """
        last = self._last.get(key) if self._remembering is not None else None
        if last is None:
            return None
        return {
            "round": last.round,
            "sent": packed(last.sent),
            "memory": pack(last.memory, self._attack),
        }

    def restore(self, key: str, tree: Any) -> None:
        """Put the last round of an attacker, or of `TOGETHER`, back; None forgets it.

        Raises:
            Unpackable: it is that of another attack.
        """
        self._last.pop(key, None)
        if tree is not None:
            memory = unpack(tree["memory"], self._attack)
            self._last[key] = _Last(tree["round"], unpacked(tree["sent"]), memory)

    def _key(self, name: str) -> str:
        return TOGETHER if self.shared else name

    def _computed(self, own: Tensor, knows: Knowledge, last: _Last | None) -> tuple[Sent, Any]:
        """The vectors that are sent, and the memory afterwards."""
        if self._remembering is None:
            return computed(self._attack, own, knows, NO_MEMORY)
        memory = first_memory(self._attack) if last is None else last.memory
        return computed(self._attack, own, knows, memory)


def first_memory(attack: VectorAttack) -> Any:
    """The memory of an attack before its first round; NO_MEMORY of one that remembers nothing.

    Raises:
        AttackError: an attack of the user fails.
    """
    if not remembers(attack):
        return NO_MEMORY
    if not is_own(attack):
        return attack.start()
    with _of_the_user(attack):
        return attack.start()


def stepped(attack: VectorAttack, own: Tensor, knows: Knowledge, memory: Any) -> tuple[Tensor | None, Any]:
    """The vector of an attacker in a round, and the memory afterwards.

    Raises:
        AttackError: an attack of the user fails, or does not return a vector like `own`; or the rule of the
            server fails, which an attack asks.
    """
    sent, after = computed(attack, own, knows, memory)
    return of_attacker(sent, knows), after


def of_attacker(sent: Sent, knows: Knowledge) -> Tensor | None:
    """The vector of this attacker, of what a joint attack sends."""
    return sent[knows.rank] if isinstance(sent, tuple) else sent


def computed(attack: VectorAttack, own: Tensor, knows: Knowledge, memory: Any) -> tuple[Sent, Any]:
    """As `stepped`, for all attackers where the attack is joint."""
    if is_own(attack):
        with _of_the_user(attack):
            return _checked(attack, own, knows, memory)
    try:
        return _asked(attack, own, knows, memory)
    except AggregationError as error:
        name = f"`byzantine.attack` {shown(attack)}"
        raise AttackError(f"{name} asks the rule of the server, which failed: {error}") from error


def _checked(attack: VectorAttack, own: Tensor, knows: Knowledge, memory: Any) -> tuple[Tensor | None, Any]:
    """As an attack of the user answers, given copies."""
    copy = own.clone()
    honest = copy[None] if knows.honest.data_ptr() == own.data_ptr() else knows.honest
    knows = replace(knows, honest=honest, model=knows.model.clone())
    found: Any = _asked(attack, copy, knows, memory)
    if not isinstance(found, tuple) or len(found) != 2:
        name, kind = named(attack), type(found).__name__
        raise AttackError(f"`step` of {name} should return (vector, memory). Found {kind}.")
    sent, after = found
    if isinstance(sent, tuple):
        if not is_joint(attack) or len(sent) != knows.f:
            rule = f"the vectors of {knows.f} attackers" if is_joint(attack) else "one vector"
            raise AttackError(f"{named(attack)} should return {rule}. Found a tuple of {len(sent)}.")
        sent = sent[knows.rank]
    if sent is None:
        return None, after
    _check_like(attack, "", sent, own)
    return sent.detach().to(own), after


def _asked(attack: VectorAttack, own: Tensor, knows: Knowledge, memory: Any) -> tuple[Sent, Any]:
    # What an attack is was found by `first_memory`: to ask a protocol takes longer than many an attack.
    if memory is NO_MEMORY:
        return cast("GradientAttack", attack)(own, knows), NO_MEMORY
    return cast("RememberingAttack", attack).step(own, knows, memory)


def delay(attack: Attack, honest: float, round: int, rng: torch.Generator) -> float:
    """Seconds that an attacker waits before it pushes.

    Args:
        attack: any attack.
        honest: the delay of the worker if it were honest.
        round: of the vector.
        rng: of this attacker in this round.

    Raises:
        AttackError: an attack of the user fails, or does not return a number of seconds.
    """
    if not isinstance(attack, Timed):
        return honest
    if not is_own(attack):
        return attack.delay(honest, round, rng)
    with _of_the_user(attack):
        found: Any = attack.delay(honest, round, rng)
        if isinstance(found, int | float) and 0 <= found < math.inf:
            return float(found)
        raise AttackError(f"`delay` of {named(attack)} should return seconds, at least 0. Found {found!r}.")


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

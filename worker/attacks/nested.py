"""Attacks with another attack in a field: `{sleeper: {attack: {alie: {z: 1.5}}}}`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varangian.own_classes import is_own
from varangian.worker.attacks.base import (
    Knowledge,
    Sent,
    Sight,
    VectorAttack,
    is_joint,
    on_vectors,
    sight_of,
    why_not,
)
from varangian.worker.attacks.mounted import computed, delay, first_memory, of_attacker, stepped


class Around:
    """Base of attacks that send the vectors of another attack in some rounds, or otherwise than it does.

    What the other one sees, asks for and waits is theirs too.
    """

    attack: VectorAttack

    def check_attack(self) -> None:
        """Check the field `attack`, in `__post_init__`.

        Raises:
            ValueError: it is not an attack on vectors.
        """
        _check_on_vectors(self.attack)

    @property
    def needs(self) -> Sight:
        return self.attack.needs

    @property
    def usual(self) -> Sight:
        return sight_of(self.attack)

    def requires(self, n: int, f: int, seen: int) -> str | None:
        return why_not(self.attack, n, f, seen)

    def delay(self, honest: float, round: int, rng: torch.Generator) -> float:
        return delay(self.attack, honest, round, rng)

    def first_memory(self) -> Any:
        """The memory of the other attack before the first round."""
        return first_memory(self.attack)

    def vector(self, own: Tensor, knows: Knowledge, memory: Any) -> tuple[Tensor | None, Any]:
        """The vector of the other attack, and its memory afterwards.

        A joint one is computed once a round for attackers who have the same memory of it, unless it draws
        random numbers: those of each attacker are its own here.
        """
        if knows.f == 1 or not is_joint(self.attack) or is_own(self.attack):
            return stepped(self.attack, own, knows, memory)
        known: list[tuple[Any, Sent, Any]] = knows.found.setdefault(id(self), [])
        for before, sent, after in known:
            if before is memory:
                return of_attacker(sent, knows), after
        drawn = knows.rng.get_state()
        sent, after = computed(self.attack, own, knows, memory)
        if torch.equal(drawn, knows.rng.get_state()):
            known.append((memory, sent, after))
        return of_attacker(sent, knows), after


def check_inner(attack: VectorAttack | None) -> None:
    """Check the field `attack` of an attack on the protocol, in `__post_init__`.

    Raises:
        ValueError: it is there, and is not an attack on vectors.
    """
    if attack is not None:
        _check_on_vectors(attack)


def _check_on_vectors(attack: VectorAttack) -> None:
    if not on_vectors(attack):
        raise ValueError(f"`attack` should be an attack on vectors, as sign_flip. Found {attack}.")

"""What is asked of a way to take part.

n  workers     f  how many of them may be Byzantine
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from varangian.registry import Problem, Registry


@runtime_checkable
class Participation(Protocol):
    """Who is in a round, how long the round waits, and what the rule is given at its end."""

    def problems(self, n: int, f: int, /) -> Iterator[Problem]:
        """What is wrong with it for so many workers; the paths are names of its fields."""
        ...

    def answers(self, n: int, f: int, /) -> int:
        """How many a round waits for until its deadline; where rounds differ, the one with the fewest."""
        ...

    def quorum(self, n: int, f: int, /) -> int:
        """What `server.quorum: null` stands for: answers, at least 1, without which no deadline closes."""
        ...

    def rows(self, n: int, quorum: int, /) -> tuple[int, ...]:
        """How many rows the rule can be given, ascending: the fewest first."""
        ...


PARTICIPATION: Registry[Participation] = Registry("participation")

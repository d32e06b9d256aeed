"""Some of those who are there, and the latest vectors of all the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from varangian.registry import Problem
from varangian.server.participation.base import PARTICIPATION
from varangian.server.participation.checks import check_gather, check_participants, too_many
from varangian.server.rows.latest_store import Kept

Form: TypeAlias = Literal["latest", "delta"]


@PARTICIPATION.register("fedlaavg")
@dataclass(frozen=True)
class FedLaAvg:
    """K of those who are there take part; the rule runs over the latest vectors of all n workers.

    "Federated Optimization under Intermittent Client Availability" (Yan et al., 2023), with any rule in the
    place of the mean. Those are chosen whose last participation is the longest ago. A worker that was never
    heard of counts as zero. Who is away still has a row, so the rule is given n of them in every round,
    however few answer.
    """

    participants: int | None = None
    """K, how many are chosen for a round; null chooses all who are there."""
    gather: float = 1.0
    """Seconds after the start of a round in which more may come to be chosen from; no longer than it takes
    until every worker is accounted for."""
    store: Kept = "float32"
    """How latest vectors are kept; bfloat16 takes half the memory and keeps 8 bits of each number."""
    folder: str | None = None
    """A folder on a disk in which latest vectors are kept; null keeps them in memory."""
    expire: int | None = None
    """Rounds after which the latest vector of a worker counts as zero again; null keeps it for ever."""
    form: Form = "latest"
    """`latest` keeps n vectors and takes any rule. `delta` keeps their mean alone, to which each worker
    sends what changed: for trusted workers and the mean only."""

    def __post_init__(self) -> None:
        check_participants(self.participants)
        check_gather(self.gather)
        if self.expire is not None and self.expire < 1:
            raise ValueError(f"`expire` should be null or at least 1 round. Found {self.expire}.")
        if self.form == "delta" and (self.store, self.folder, self.expire) != ("float32", None, None):
            raise ValueError(
                "`store`, `folder` and `expire` should be left out with `form: delta`, which keeps no "
                "vectors of workers"
            )

    def problems(self, n: int, f: int) -> Iterator[Problem]:
        yield from too_many(self.participants, n)
        if self.form == "delta" and f > 0:
            rule = (
                f"should be `latest` with f = {f}: a sum hides the part of each worker from every rule, "
                "and what a Byzantine one adds to it stays for ever"
            )
            yield Problem("form", rule, self.form, "Set form to latest, or f=0 if every worker is trusted.")

    def answers(self, n: int, f: int) -> int:
        return n if self.participants is None else self.participants

    def quorum(self, n: int, f: int) -> int:
        # Silent workers have rows too, so what the rule promises does not hang on how many answer.
        return 1

    def rows(self, n: int, quorum: int) -> tuple[int, ...]:
        return (n,)

"""Partial participation with the latest vectors of all workers (FedLaAvg).

Workers that are away still have a row each, so a rule keeps its guarantee however few take part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from varangian.aggregators import Aggregator, Mean
from varangian.files import user_path
from varangian.protos.payloads.encoding import FLOAT32, Dtype, RowDtype
from varangian.registry import FIXES, Fix, Problem
from varangian.server.participation.base import PARTICIPATION
from varangian.server.participation.selection import SelectSome
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.rows.delta_sum import DeltaSum
from varangian.server.rows.latest import LatestVectors
from varangian.server.rows.latest_store import LatestPlan, StoredDtype
from varangian.server.rows.source import RowSource

Form: TypeAlias = Literal["latest", "delta"]


@PARTICIPATION.register("fedlaavg")
@dataclass(frozen=True)
class FedLaAvg(SelectSome):
    """Partial participation with latest vectors (FedLaAvg): the rule runs over those of all n workers.

    K of the available workers are selected in each round: those whose last participation is the longest
    ago. "Federated Optimization under Intermittent Client Availability" (Yan et al., 2023), with any rule
    in the place of the mean. The vector of a worker that has never pushed is zero. An absent worker still
    has a row, so the rule is given n rows in every round, however few workers answer.
    """

    participants: int | None = None
    """K, workers selected for a round; null selects all that are available."""
    gather: float = 1.0
    """Seconds that the server collects ready workers at the start of a round before it selects; it selects
    earlier once the state of every worker is known."""
    store: StoredDtype = "float32"
    """Type of the stored latest vectors; bfloat16 takes half the memory and keeps 8 bits of each number."""
    folder: str | None = None
    """A folder on disk for the latest vectors; null keeps them in memory."""
    expire: int | None = None
    """Rounds after which the latest vector of a worker counts as zero again; null keeps it for ever."""
    form: Form = "latest"
    """`latest` keeps n vectors and works with any rule. `delta` keeps only their mean, and workers push the
    change of their vectors: for trusted workers and the mean only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expire is not None and self.expire < 1:
            raise ValueError(f"`expire` should be null or at least 1 round. Found {self.expire}.")
        if self.pushes_deltas and (self.store, self.folder, self.expire) != ("float32", None, None):
            raise ValueError(
                "`store`, `folder` and `expire` should be left out with `form: delta`, which keeps no "
                "vectors of workers"
            )

    @property
    def pushes_deltas(self) -> bool:
        return self.form == "delta"

    def problems(self, n: int, f: int, deadline: Seconds) -> Iterator[Problem]:
        yield from super().problems(n, f, deadline)
        if self.pushes_deltas and f > 0:
            rule = (
                f"should be `latest` with f = {f}: a sum hides the part of each worker from every rule, "
                "and what a Byzantine one adds to it stays for ever"
            )
            hint = "Set form to latest, or f=0 if every worker is trusted."
            yield Problem(self.setting("form"), rule, self.form, hint)

    def local_problems(self) -> Iterator[Problem]:
        if self.folder is not None and not user_path(self.folder).is_dir():
            yield Problem(self.setting("folder"), "should be a folder that exists", self.folder)

    def vector_problems(self, aggregator: Aggregator, wire: Dtype, rows: RowDtype) -> Iterator[Problem]:
        if not self.pushes_deltas:
            return
        form = self.setting("form")
        if aggregator.mix or not isinstance(aggregator.rule, Mean):
            rule = "should be `latest` with this aggregator: of deltas only their sum is kept, for the mean"
            offers = Fix(form, ("latest",)), Fix("aggregator.rule", ("mean",))
            yield Problem(form, rule, self.form, f"Set {FIXES}.", offers)
        if rows != FLOAT32:
            # What is rounded on the wire comes with the next delta; what is rounded here, no worker knows.
            rule = f"should be {FLOAT32} with {form} = delta: a sum never loses a rounding"
            yield Problem("server.rows", rule, rows)

    def quorum(self, n: int, f: int) -> int:
        # Silent workers have rows too, so the guarantee does not depend on how many answer.
        return 1

    def row_counts(self, n: int, f: int, quorum: int) -> tuple[int, ...]:
        return (n,)

    def row_places(
        self, workers: Sequence[Worker], pushed: Collection[Worker], faulty: Collection[Worker]
    ) -> list[int]:
        return [i for i, worker in enumerate(workers) if worker not in faulty]

    def row_workers(
        self, workers: Sequence[Worker], pushed: Collection[Worker], faulty: Collection[Worker]
    ) -> list[Worker]:
        return [worker for worker in sorted(workers) if worker not in faulty]

    def sentence(self, n: int, f: int, quorum: int) -> str:
        return f"the latest vectors of {n} workers, of which f = {f} may be Byzantine"

    def row_source(self, workers: Sequence[Worker], d: int, warn: Callable[[str], None]) -> RowSource:
        if self.pushes_deltas:
            return DeltaSum(workers, d)
        return LatestVectors.of(
            workers,
            d,
            self.round_size(len(workers), 0),
            store=self.store,
            folder=self.folder,
            expire=self.expire,
            warn=warn,
        )

    def latest_plan(self, n: int, d: int) -> LatestPlan | None:
        if self.pushes_deltas:
            return None
        return LatestPlan(n, d, self.store, None if self.folder is None else user_path(self.folder))

    def row_dtype(self, rows: RowDtype) -> RowDtype:
        """The type of pushed vectors: no wider than that of the stored latest vectors."""
        return rows if self.store == FLOAT32 else self.store

    def extra_vectors(self, n: int) -> int:
        """A sum of deltas, in twice the precision."""
        return 2 if self.pushes_deltas else 0

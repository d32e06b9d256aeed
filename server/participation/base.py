"""Participation: who is in a round, how long the round waits, and which rows the rule is given.

n  workers     f  how many of them may be Byzantine     d  parameters
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import ClassVar

from varangian.aggregators import Aggregator
from varangian.protos.payloads.encoding import Dtype, RowDtype
from varangian.registry import Problem, Registry, join
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.state import Selection
from varangian.server.rows.latest_store import LatestPlan
from varangian.server.rows.source import Pushed, RowSource

MAX_WORKERS_TRIED = 1000
"""The largest number of workers among the remedies."""


class Participation(ABC):
    """One way for workers to take part in rounds.

    Each is a frozen dataclass, registered by name in `PARTICIPATION`; its fields are its settings. It has
    to answer `round_size` and `selection`. The other answers are those of a round whose rule is given the
    new vectors of its members, as they were pushed.
    """

    adaptive_waiting: ClassVar[bool] = True
    """True if `server.wait_factor` may close a round before its deadline."""
    stands_as_aggregator: ClassVar[bool] = False
    """True if it can be written together with its rule, as `aggregator: {name: {rule: ...}}`."""

    @abstractmethod
    def round_size(self, n: int, f: int) -> int:
        """Vectors for which a round waits until its deadline; where rounds differ, the fewest."""

    @abstractmethod
    def selection(self, n: int, f: int) -> Selection:
        """The selection of workers that the protocol asks: invitations, and when a round is complete."""

    def quorum(self, n: int, f: int) -> int:
        """The quorum where `server.quorum` is null: answers, at least 1, to close at the deadline with."""
        return max(1, self.round_size(n, f) - f)

    def row_counts(self, n: int, f: int, quorum: int) -> tuple[int, ...]:
        """The numbers of rows that the rule can be given, ascending."""
        return tuple(sorted({quorum, self.round_size(n, f)}))

    def row_places(
        self, workers: Sequence[Worker], pushed: Collection[Worker], faulty: Collection[Worker]
    ) -> list[int]:
        """The places, among all workers, of the rows that the rule is given at the end of a round.

        Where the members of a round change, rows have no place of their own and are counted from 0.
        """
        return [*range(len(pushed))]

    def row_workers(
        self, workers: Sequence[Worker], pushed: Collection[Worker], faulty: Collection[Worker]
    ) -> list[Worker]:
        """The workers of the rows that the rule is given at the end of a round, sorted."""
        return sorted(pushed)

    def lost_quorum(self, workers: tuple[Worker, ...], gone: Set[Worker], quorum: int) -> str:
        """A sentence if some round can never have its quorum without the workers that are gone.

        Asked while at least `quorum` of all workers are left.
        """
        return ""

    def setting(self, field: str = "") -> str:
        """The path of the participation, or of a field of it, in a configuration."""
        path = join("participation", PARTICIPATION.name(self))
        return join(path, field) if field else path

    def problems(self, n: int, f: int, deadline: Seconds) -> Iterator[Problem]:
        """Problems of its fields with so many workers and this deadline, in seconds."""
        return iter(())

    def local_problems(self) -> Iterator[Problem]:
        """Problems on the machine of the server, as a folder that does not exist."""
        return iter(())

    def vector_problems(self, aggregator: Aggregator, wire: Dtype, rows: RowDtype) -> Iterator[Problem]:
        """Problems with this rule, or with the types in which vectors travel and are kept."""
        return iter(())

    def guarantee_problem(self, aggregator: Aggregator, n: int, f: int) -> Problem | None:
        """A reason why the rule promises nothing, beyond its condition for the `row_counts`."""
        return None

    def remedies(self, n: int) -> Mapping[str, Iterable[int]]:
        """Settings that may give the rule enough rows, by path, with the numbers to try in order."""
        return {"workers": range(n + 1, MAX_WORKERS_TRIED)}

    def sentence(self, n: int, f: int, quorum: int) -> str:
        """The rows that meet the condition of the rule, as `varangian check` says it."""
        fewest = self.row_counts(n, f, quorum)[0]
        return f"{fewest} vectors, the fewest that make a round, of which f = {f} may be Byzantine"

    def row_source(self, workers: Sequence[Worker], d: int, warn: Callable[[str], None]) -> RowSource:
        """The source of the rows that the rule is given, from the vectors that are pushed.

        `warn` takes a sentence when the disk has no more room; it is called from any thread.

        Raises:
            OSError: there is no room for what is to be kept.
        """
        return Pushed()

    def latest_plan(self, n: int, d: int) -> LatestPlan | None:
        """Memory or disk for the latest vectors of all workers; None where none are kept."""
        return None

    def row_slots(self, n: int, f: int) -> int:
        """Vectors that can be on their way, or wait to be used, at once."""
        return n

    def row_dtype(self, rows: RowDtype) -> RowDtype:
        """The type in which vectors are kept until they are used, where `server.rows` is `rows`."""
        return rows

    def extra_vectors(self, n: int) -> int:
        """Vectors as long as the model that the server keeps beside the rows."""
        return 0

    @property
    def pushes_deltas(self) -> bool:
        """True if workers push the change of their vectors instead of the vectors."""
        return False


DEFAULT = "sync"
PARTICIPATION: Registry[Participation] = Registry("participation")

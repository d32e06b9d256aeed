"""What the participation of a run needs besides its machine."""

from __future__ import annotations

from collections.abc import Callable

from varangian.config import RunConfig
from varangian.config.build import worker_names
from varangian.paths import user_path
from varangian.protos.encoding import Dtype
from varangian.server.participation import Asap, Async, FedAvg, FedLaAvg
from varangian.server.rows.delta_sum import DeltaSum
from varangian.server.rows.latest_store import LatestPlan
from varangian.server.rows.source import LatestVectors, Pushed, RowSource, WeightedByAge


def row_source(config: RunConfig, d: int, warn: Callable[[str], None]) -> RowSource:
    """From what is pushed to what the rule sees.

    `warn` takes a sentence when the disk has no more room; it is called from any thread.

    Raises:
        OSError: there is no room for what is to be kept.
    """
    way = config.participation
    if isinstance(way, FedLaAvg) and way.form == "delta":
        return DeltaSum(worker_names(config), d)
    if isinstance(way, FedLaAvg):
        return LatestVectors.of(
            worker_names(config),
            d,
            way.answers(config.workers, config.f),
            store=way.store,
            folder=way.folder,
            expire=way.expire,
            warn=warn,
        )
    return WeightedByAge() if isinstance(way, Async) else Pushed()


def plan(config: RunConfig, d: int) -> LatestPlan | None:
    """What the latest vectors take; None where none are kept."""
    way = config.participation
    if not isinstance(way, FedLaAvg) or way.form == "delta":
        return None
    return LatestPlan(config.workers, d, way.store, None if way.folder is None else user_path(way.folder))


def seats(config: RunConfig) -> int:
    """How many vectors can be on their way, or wait to be used, at once.

    An upload may outlive its round, until its silence is noticed: so there are as many places again. A
    Byzantine worker may hold its place for as long as a round waits, however many are invited instead.
    """
    way, n = config.participation, config.workers
    if not isinstance(way, FedAvg | FedLaAvg):
        return n
    return min(n, 2 * way.answers(n, config.f) + config.f)


def rows(config: RunConfig) -> Dtype:
    """How vectors are kept until they are used: no wider than they are kept after it."""
    way = config.participation
    return way.store if isinstance(way, FedLaAvg) and way.store != "float32" else config.server.rows


def more(config: RunConfig) -> int:
    """How many more vectors are kept, as long as the model."""
    way, n = config.participation, config.workers
    match way:
        case FedLaAvg(form="delta"):
            return 2  # a sum in twice the precision
        case Asap() | Async():  # models of rounds that are over, on their way to somebody
            return n if way.tau is None else min(n, way.tau)
        case _:
            return 0

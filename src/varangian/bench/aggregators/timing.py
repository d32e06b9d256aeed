"""Interleaved timing: each call stands between two reference calls, so a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from varangian.bench.aggregators.report import Timing

CLOCKS = (
    "wall: time.perf_counter; cpu: time.process_time, of all threads; medians, ratios to rows.mean(0) just "
    "before and just after"
)
PATIENCE = 10.0
"""Seconds after which a slow one is not repeated again."""
NOTHING = 1e-9
"""The least time there is, so that nothing is divided by zero."""

Call = Callable[[], object]


class CallTime(NamedTuple):
    """Seconds of one call."""

    wall: float
    cpu: float


class Sample(NamedTuple):
    """One call, between two of the measure."""

    before: CallTime
    own: CallTime
    after: CallTime


def interleave(calls: Mapping[str, Call], measure: Call, repeats: int) -> dict[str, Timing]:
    """Time all calls by turns; every one has been made once before."""
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for call in (measure, *calls.values()):
        call()
    for _ in range(repeats):
        before = measure_call(measure)
        for name, call in calls.items():
            if sum(sample.own.wall for sample in samples[name]) > PATIENCE:
                continue
            own, after = measure_call(call), measure_call(measure)
            samples[name].append(Sample(before, own, after))
            before = after
    return {name: timing(found) for name, found in samples.items()}


def measure_call(call: Call) -> CallTime:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return CallTime(max(wall, NOTHING), max(cpu, NOTHING))


def timing(samples: list[Sample]) -> Timing:
    return Timing(
        wall_ms=1e3 * statistics.median(s.own.wall for s in samples),
        cpu_ms=1e3 * statistics.median(s.own.cpu for s in samples),
        wall_x_mean=statistics.median(2 * s.own.wall / (s.before.wall + s.after.wall) for s in samples),
        cpu_x_mean=statistics.median(2 * s.own.cpu / (s.before.cpu + s.after.cpu) for s in samples),
        repeats=len(samples),
    )

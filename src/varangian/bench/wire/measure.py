"""The measurement of one setting: check every transport, then measure those that move the right bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from varangian.bench.wire.report import Line, Setting, Speed
from varangian.bench.wire.ways.base import Job
from varangian.bench.wire.ways.catalogue import GRPC, TCP, WAYS
from varangian.bench.wire.ways.processes import BrokenWay, Pair, Round

MEMORY_FRACTION = 0.6
"""Of the free memory that may be used at once."""
MEASURES = (TCP, GRPC)
"""The yardsticks of the others, in the order of a turn."""
PATIENCE = 40.0
"""Seconds after which a slow way is not repeated again."""
WARM_UP = 2
"""Rounds before the first that counts. The first is compared byte by byte."""


def measure_setting(job: Job, names: Sequence[str], repeats: int) -> Setting:
    """All ways that there are here; what the others are measured by takes part in any case."""
    others = [name for name in names if name not in MEASURES]
    lines: dict[str, Line] = {}
    for name in others:
        if reason := WAYS[name].absent():
            lines[name] = _line(name, "absent", reason)
    room = MEMORY_FRACTION * available() - WAYS[TCP].memory(job)
    measures = [TCP]
    if WAYS[GRPC].memory(job) <= room:
        room -= WAYS[GRPC].memory(job)
        measures.append(GRPC)
    else:
        lines[GRPC] = _too_large(GRPC, job, room)
    for batch in _batches(job, room, [name for name in others if name not in lines], lines):
        found = _batch(job, [*measures, *batch], repeats)
        lines |= {name: line for name, line in found.items() if name not in lines}
    order = (*MEASURES, *others)
    return Setting(job.workers, job.size, tuple(lines[name] for name in order if name in lines))


def _batches(job: Job, room: float, names: Sequence[str], lines: dict[str, Line]) -> Iterator[list[str]]:
    """Batches of ways: as many at once as there is memory for, since a common moment compares better."""
    batch, left = list[str](), room
    for name in names:
        need = WAYS[name].memory(job)
        if need > room:
            lines[name] = _too_large(name, job, room)
            continue
        if need > left:
            yield batch
            batch, left = [], room
        batch.append(name)
        left -= need
    yield batch


def _too_large(name: str, job: Job, room: float) -> Line:
    need = WAYS[name].memory(job)
    return _line(name, "absent", f"needs {need / 1e9:.1f} GB of memory, free are {max(room, 0) / 1e9:.1f}")


def _batch(job: Job, names: Sequence[str], repeats: int) -> dict[str, Line]:
    """The lines of these."""
    lines: dict[str, Line] = {}
    with ExitStack() as stack:
        pairs = {name: Pair(WAYS[name].target, job) for name in names}
        for pair in pairs.values():
            stack.callback(pair.close)
        for step in (Pair.connect, Pair.begin, _check):
            _each(step, pairs, lines)
        samples = _interleave(pairs, repeats, lines)
        beyond = {name: pairs[name].peak_payloads() for name in samples}
    for name, rounds in samples.items():
        lines[name] = _line(name, "measured", speed=_speed(job, rounds, beyond[name]))
    return lines


def _each(step: Callable[[Pair], None], pairs: dict[str, Pair], lines: dict[str, Line]) -> None:
    """Take a step with every pair, and none with those that fail."""
    for name, pair in list(pairs.items()):
        try:
            step(pair)
        except BrokenWay as error:
            lines[name] = _line(name, "failed", str(error))
            del pairs[name]


def _check(pair: Pair) -> None:
    """Move the right bytes.

    Raises:
        BrokenWay: other bytes have arrived.
    """
    for _ in range(WARM_UP):
        pair.round()
        if reason := pair.check():
            raise BrokenWay(reason)


class Sample(NamedTuple):
    """A round, and what it is to be compared with."""

    own: Round
    tcp: float
    """Seconds of raw TCP around it."""
    grpc: float | None
    """Seconds of raw bytes over gRPC in the same turn."""


def _interleave(pairs: Mapping[str, Pair], repeats: int, lines: dict[str, Line]) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in pairs}
    if TCP not in pairs:
        raise BrokenWay(f"raw TCP: {lines[TCP].reason}")  # nothing to measure by
    for _ in range(repeats):
        first = before = pairs[TCP].round()
        grpc: float | None = None
        for name in [name for name in samples if name != TCP]:
            if sum(sample.own.seconds for sample in samples[name]) > PATIENCE:
                continue
            try:
                own = pairs[name].round()
            except BrokenWay as error:
                lines[name] = _line(name, "failed", str(error))
                del samples[name]
                continue
            after = pairs[TCP].round()
            grpc = own.seconds if name == GRPC else grpc
            samples[name].append(Sample(own, (before.seconds + after.seconds) / 2, grpc))
            before = after
        samples[TCP].append(Sample(first, first.seconds, grpc))
    return samples


def _speed(job: Job, samples: Sequence[Sample], beyond: float) -> Speed:
    gigabytes = job.total / 1e9
    rounds = [sample.own for sample in samples]
    by_grpc = [sample.grpc / sample.own.seconds for sample in samples if sample.grpc]
    return Speed(
        gigabytes_per_second=gigabytes / statistics.median(round.seconds for round in rounds),
        x_tcp=statistics.median(sample.tcp / sample.own.seconds for sample in samples),
        x_grpc=statistics.median(by_grpc) if by_grpc else None,
        server_cpu=statistics.median(round.server.cpu for round in rounds) / gigabytes,
        workers_cpu=statistics.median(round.workers.cpu for round in rounds) / gigabytes,
        server_faults=statistics.median(round.server.faults for round in rounds) / gigabytes,
        payloads=beyond,
        seconds=tuple(round.seconds for round in rounds),
    )


def _line(name: str, status: str, reason: str | None = None, speed: Speed | None = None) -> Line:
    way = WAYS[name]
    return Line(name, way.title, way.kind, status, reason, speed)  # type: ignore[arg-type]


def available() -> int:
    """Bytes of memory that are free or soon could be."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) << 10

"""The measurement of one size: check every rule, then time those that are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from varangian.aggregators import Rows, aggregator_from
from varangian.aggregators.kernels import backend_for
from varangian.bench.aggregators import gate, peers
from varangian.bench.aggregators.cases import Input, case_of
from varangian.bench.aggregators.report import Copy, Line, Size, Timing
from varangian.bench.aggregators.timing import interleave

OURS = "varangian"
COPY = "copy"
MEAN = "mean(0)"
"""No name of a rule: that has no brackets."""

Call = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Entry:
    """A line, and what is timed for it; None where nothing is."""

    line: Line
    call: Call | None = None


def measure_size(
    n: int,
    d: int,
    rules: Sequence[str],
    libraries: Sequence[str],
    repeats: int,
    seed: int,
    backend: str | None,
) -> Size:
    """All rules, ours and theirs, on the same rows.

    Raises:
        ConfigError: there is no such rule.
        BackendRefused: the backend that was asked for takes no such rows.
    """
    given = Input.of(n, d, seed)
    chosen = backend_for(Rows.of(given.rows), backend).NAME
    sample = given.first(min(d, gate.COLUMNS))
    entries = [_ours(name, given, sample, backend) for name in rules]
    entries += [
        _theirs(library, peer, given, sample) for library in libraries for peer in peers.peers(library, n)
    ]
    timings = _timings(entries, given, repeats)
    copy = _copy(timings[COPY], given)
    lines = tuple(_with_timing(entry.line, timings.get(entry.line.title), copy) for entry in entries)
    return Size(n, d, given.byzantine, chosen, timings[MEAN], copy, lines)


def _ours(name: str, given: Input, sample: Input, backend: str | None) -> Entry:
    case = case_of(name, len(given.rows))
    if isinstance(case, str):
        return Entry(Line(name, OURS, None, "impossible", reason=case))
    found = gate.check(case, sample, backend)
    if found.reason:
        return Entry(Line(name, OURS, case.f, "failed", found.error, found.reason))
    passes = case.passes(sample, backend)
    return Entry(
        Line(name, OURS, case.f, "timed", found.error, passes=passes), lambda: case(given, backend)
    )


def _theirs(library: str, peer: peers.Peer, given: Input, sample: Input) -> Entry:
    aggregator = aggregator_from(peer.spec, peer.name, f=given.byzantine)
    line = Line(peer.name, library, given.byzantine, "timed", against=str(peer.spec))
    try:
        wanted = replace(aggregator, backend="reference")(sample.rows.double()).vector
        found = gate.compare(peer.rule(sample.rows.clone()), wanted, peers.TOLERANCE)
    except Exception as error:  # another library may do anything
        return Entry(replace(line, status="failed", reason=f"{type(error).__name__}: {error}"))
    if not peer.agrees:
        return Entry(
            replace(line, error=found.error, verdict="other convention"), lambda: peer.rule(given.rows)
        )
    if found.reason:
        return Entry(replace(line, status="failed", error=found.error, reason=found.reason))
    return Entry(replace(line, error=found.error, verdict="agrees"), lambda: peer.rule(given.rows))


def _timings(entries: Sequence[Entry], given: Input, repeats: int) -> dict[str, Timing]:
    target = torch.empty_like(given.rows)

    def mean() -> object:
        return given.rows.mean(0)

    calls: dict[str, Call] = {MEAN: mean, COPY: lambda: target.copy_(given.rows)}
    calls |= {entry.line.title: entry.call for entry in entries if entry.call}
    return interleave(calls, mean, repeats)


def _copy(timing: Timing, given: Input) -> Copy:
    moved = 2 * given.rows.numel() * given.rows.element_size()
    return Copy(timing.wall_ms, moved, moved / (1e6 * timing.wall_ms))


def _with_timing(line: Line, timing: Timing | None, copy: Copy) -> Line:
    if timing is None:
        return line
    read = line.passes * copy.wall_ms / 2 if line.passes else None
    return replace(line, timing=timing, x_floor=timing.wall_ms / read if read else None)

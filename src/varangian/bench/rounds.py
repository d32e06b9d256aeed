"""`varangian bench round`: the time that a rule and a step add to receiving the vectors."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from varangian.bench import small
from varangian.bench.aggregators.cases import case_of, most_byzantine, names
from varangian.bench.machine import load, machine
from varangian.bench.outputs import check_outputs
from varangian.bench.wire.ways.base import Job
from varangian.bench.wire.ways.processes import BrokenWay, Pair, Round
from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import align
from varangian.files import write_atomically

SCHEMA = 2
PARAMETERS = 11_200_000
WARM_UP = 1
LEGEND = (
    "receive: until every worker knew that its vector had arrived, with a learner that does nothing.\n"
    "round: until the parameters had moved. x: ratio to receive in the same turn. tail: from the last\n"
    "answer to a worker to the end of the round. CPU: of the server in the round. Medians."
)


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds of one rule at one pace."""

    rule: str
    pace: float | None
    """Bytes a second, of all workers together; None where only the machine is the limit."""
    receive: float
    round: float
    x_round: float
    tail: float
    cpu: float
    """Seconds of the server during a round."""
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """All results, and the machine they were measured on."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    timings: tuple[Timing, ...]

    def plain(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def command(args: argparse.Namespace) -> int:
    """Measure and print."""
    check_outputs(args)
    if args.small:
        return small.measure(args)
    args.parameters = args.parameters or PARAMETERS
    args.rules = names(args.rules)
    for rule in args.rules:
        if isinstance(reason := case_of(rule, args.workers), str):
            raise CommandError(f"{rule} takes no {args.workers} rows: {reason}")
    where = machine()
    timings = tuple(_timings(args))
    settings = {
        "workers": args.workers,
        "parameters": args.parameters,
        "f": most_byzantine(args.workers),
        "pace": args.pace,
        "repeats": args.repeats,
    }
    report = Report(where | {"load_at_end": load()}, settings, timings)
    text = json.dumps(report.plain(), indent=2, allow_nan=False)
    print(text if args.format == "json" else plain(report))
    if args.json:
        write_atomically(Path(args.json), f"{text}\n".encode())
    return OK


def _timings(args: argparse.Namespace) -> Iterator[Timing]:
    job = Job(args.workers, args.parameters)
    for rule in args.rules:
        if args.format != "json":
            print(f"{rule}, {args.workers} x {args.parameters} ...", file=sys.stderr)
        try:
            yield from _of_rule(job, rule, args.pace, args.repeats)
        except BrokenWay as error:
            raise CommandError(f"{rule}: {error}") from None


def _of_rule(job: Job, rule: str, pace: float, repeats: int) -> Iterator[Timing]:
    f = most_byzantine(job.workers)
    ways = {
        "receive": "rounds:Receive",
        "round": f"rounds:Round:{rule}:{f}",
    }
    with ExitStack() as stack:
        pairs = {name: Pair(where, job) for name, where in ways.items()}
        for pair in pairs.values():
            stack.callback(pair.close)
        for step in (Pair.connect, Pair.begin):
            for pair in pairs.values():
                step(pair)
        for rate in (pace, None):
            yield _timing(rule, rate, _interleave(pairs, rate, repeats))


def _interleave(pairs: Mapping[str, Pair], pace: float | None, repeats: int) -> list[dict[str, Round]]:
    for pair in pairs.values():
        pair.pace(pace)
    turns = [{name: pair.round() for name, pair in pairs.items()} for _ in range(WARM_UP + repeats)]
    return turns[WARM_UP:]


def _timing(rule: str, pace: float | None, turns: Sequence[Mapping[str, Round]]) -> Timing:
    def median(name: str, what: str) -> float:
        return statistics.median(float(getattr(turn[name], what)) for turn in turns)

    return Timing(
        rule=rule,
        pace=pace,
        receive=median("receive", "seconds"),
        round=median("round", "whole"),
        x_round=statistics.median(turn["round"].whole / turn["receive"].seconds for turn in turns),
        tail=statistics.median(turn["round"].whole - turn["round"].seconds for turn in turns),
        cpu=statistics.median(turn["round"].server.cpu for turn in turns),
        rounds=tuple(turn["round"].whole for turn in turns),
    )


def plain(report: Report) -> str:
    """The report as a table."""
    size = f"{report.settings['workers']} x {report.settings['parameters']:.3g}".replace("e+0", "e")
    rows = [
        (size, "pace", "receive s", "round s", "x", "tail s", "CPU s"),
        *map(_cells, report.timings),
    ]
    lines = align(rows, left=(0,))
    where = f"{report.machine['cpu']}, cores: {report.machine['cores']}"
    loads = (
        f"load average {report.machine['load_at_start']} before and {report.machine['load_at_end']} after"
    )
    return "\n".join([*lines, "", LEGEND, f"loopback; {where}; {loads}"])


def _cells(timing: Timing) -> tuple[str, ...]:
    pace = "none" if timing.pace is None else f"{timing.pace / 1e6:.0f} MB/s"
    values = (timing.receive, timing.round, timing.x_round, timing.tail, timing.cpu)
    return timing.rule, pace, *(f"{value:.2f}" for value in values)

"""The command `varangian bench wire`: measure the transports, print or write the report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import grpc

from varangian.bench.machine import load, machine
from varangian.bench.outputs import check_outputs
from varangian.bench.wire.measure import MEASURES, measure_setting
from varangian.bench.wire.report import Report, Setting, title
from varangian.bench.wire.table import plain
from varangian.bench.wire.ways.base import Job
from varangian.bench.wire.ways.catalogue import WAYS
from varangian.cli.main import FAILED, OK, CommandError
from varangian.files import write_atomically


def command(args: argparse.Namespace) -> int:
    """Check, measure, and print; 1 when a way that should work does not."""
    names = list(dict.fromkeys(args.only or WAYS))
    if unknown := [name for name in names if name not in WAYS]:
        raise CommandError(f"There is no way {unknown[0]!r} of moving gradients, but {', '.join(WAYS)}.")
    check_outputs(args)
    report = _report(args, names)
    print(_as_json(report) if args.format == "json" else plain(report))
    if args.json:
        write_atomically(Path(args.json), f"{_as_json(report)}\n".encode())
    if args.png:
        from varangian.bench.wire.picture import bars

        bars(report, Path(args.png))
    for sentence in report.failed:
        print(f"varangian: FAILED: {sentence}", file=sys.stderr)
    return FAILED if report.failed else OK


def _report(args: argparse.Namespace, names: list[str]) -> Report:
    where = machine() | {"grpc": grpc.__version__}
    jobs = [Job(workers, size // 4) for size in args.sizes for workers in args.workers]
    found = tuple(_setting(args, job, names) for job in jobs)
    settings = {
        "sizes": args.sizes,
        "workers": args.workers,
        "ways": list(dict.fromkeys((*MEASURES, *names))),
        "repeats": args.repeats,
    }
    versions = {
        way.title: way.version
        for way in map(WAYS.__getitem__, names)
        if way.kind == "peer" and not way.absent()
    }
    peers = {name: version for name, version in versions.items() if version}
    return Report(where | {"load_at_end": load()}, settings, found, peers)


def _setting(args: argparse.Namespace, job: Job, names: list[str]) -> Setting:
    if args.format != "json":
        print(f"{title(job.workers, job.size)}: {len(names)} ways ...", file=sys.stderr)
    return measure_setting(job, names, args.repeats)


def _as_json(report: Report) -> str:
    return json.dumps(report.plain(), indent=2, allow_nan=False)

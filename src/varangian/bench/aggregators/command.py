"""The command `varangian bench aggregators`: measure the rules, print or write the report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from varangian.aggregators.kernels import BackendRefused
from varangian.bench.aggregators import gate, peers
from varangian.bench.aggregators.cases import case_of, most_byzantine, names
from varangian.bench.aggregators.measure import measure_size
from varangian.bench.aggregators.report import Report, Size
from varangian.bench.aggregators.table import plain
from varangian.bench.aggregators.timing import CLOCKS
from varangian.bench.machine import load, machine
from varangian.bench.outputs import check_outputs
from varangian.cli.main import FAILED, OK, CommandError
from varangian.files import write_atomically

SEED = 1


def command(args: argparse.Namespace) -> int:
    """Check, time, and print; 1 when a rule of ours is wrong."""
    rules = list(dict.fromkeys(names(args.rules)))
    for name in rules:
        case_of(name, args.sizes[0][0])  # what is misspelt is found before anything is timed
    check_outputs(args)
    with _threads(args.threads):
        report = _report(args, rules)
    _show(report, args.format)
    if args.json:
        write_atomically(Path(args.json), _as_json(report).encode())
    if args.png:
        from varangian.bench.aggregators.picture import bars

        bars(report, Path(args.png))
    for sentence in report.failed:
        print(f"varangian: FAILED and not timed: {sentence}", file=sys.stderr)
    return FAILED if report.failed else OK


def _report(args: argparse.Namespace, rules: list[str]) -> Report:
    found = {library: peers.presence(library) for library in peers.LIBRARIES} if args.peers else {}
    present = [library for library, (here, _) in found.items() if here]
    where = machine()
    sizes = tuple(_size(args, n, d, rules, present) for n, d in args.sizes)
    settings = {
        "sizes": [list(size) for size in args.sizes],
        "rules": rules,
        "repeats": args.repeats,
        "dtype": "float32",
        "seed": SEED,
        "backend": args.backend,
        "clocks": CLOCKS,
        "tolerance": gate.TOLERANCE,
        "tolerance_of_peers": peers.TOLERANCE,
    }
    said = {library: text for library, (_, text) in found.items()}
    return Report({**where, "load_at_end": load()}, settings, sizes, said)


def _size(args: argparse.Namespace, n: int, d: int, rules: list[str], present: list[str]) -> Size:
    if args.format != "json":
        print(f"{n} x {d}, f = {most_byzantine(n)}: {len(rules)} rules of ours ...", file=sys.stderr)
    try:
        return measure_size(n, d, rules, present, args.repeats, SEED, args.backend)
    except BackendRefused as error:
        raise CommandError(str(error)) from error


def _show(report: Report, kind: str) -> None:
    if kind == "json":
        print(_as_json(report), end="")
    elif kind == "rich" or (kind == "auto" and sys.stdout.isatty()):
        from varangian.bench.aggregators.rich_table import show

        show(report)
    else:
        print(plain(report))


def _as_json(report: Report) -> str:
    return json.dumps(report.plain(), indent=2, allow_nan=False) + "\n"


@contextmanager
def _threads(count: int) -> Generator[None, None, None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

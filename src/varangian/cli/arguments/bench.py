"""The arguments of `varangian bench`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from varangian.cli.arguments.common import add_format, count
from varangian.files import expanded

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add(parser: argparse.ArgumentParser) -> None:
    """The benchmarks, each a command of its own."""
    commands = parser.add_subparsers(dest="what", metavar="what", required=True)
    for name, (module, summary, arguments) in BENCHMARKS.items():
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.set_defaults(run=module)
        arguments(sub)
        sub.add_argument(
            "--json", type=expanded, metavar="FILE", help="write the numbers and the hardware here"
        )
        if name != "round":
            sub.add_argument("--png", type=expanded, metavar="FILE", help="write a bar chart here")
        add_format(sub)


def _aggregators(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", action="store_true", help="other libraries beside ours, where installed")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_rows_by_columns,
        default=[(15, 10**6), (50, 10**6)],
        metavar="NxD",
        help="workers x parameters; by default 15x1000000 and 50x1000000",
    )
    parser.add_argument(
        "--rules", nargs="+", metavar="RULE", help="rules, as krum median, or nnm+krum; by default all"
    )
    parser.add_argument("--threads", type=count, default=1, metavar="N")
    parser.add_argument("--repeats", type=count, default=7, metavar="N", help="runs; medians are reported")
    parser.add_argument("--backend", metavar="NAME", help="kernels to insist on; by default the fastest")


def _wire(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_bytes,
        default=[45 * 10**6, 400 * 10**6],
        metavar="SIZE",
        help="bytes of one gradient in float32; by default 45MB and 400MB",
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=count,
        default=[1, 4, 15],
        metavar="N",
        help="numbers of workers; by default 1 4 15",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WAY", help="ways to send, as ours, pull or gloo; by default all"
    )
    parser.add_argument("--repeats", type=count, default=5, metavar="N", help="runs; medians are reported")


def _round(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--workers", type=count, default=15, metavar="N", help="number of workers; by default 15"
    )
    parser.add_argument(
        "-d",
        "--parameters",
        type=count,
        metavar="D",
        help="by default 11200000, or 5000 with --small",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="a round of a small model, compared with a pair of bare grpc.aio calls of the same bytes",
    )
    parser.add_argument(
        "--pace",
        type=_rate,
        default=600 * 10**6,
        metavar="SPEED",
        help="speed of all uploads together, as 600MB/s (the default); full speed is measured, too",
    )
    parser.add_argument(
        "--rules",
        nargs="+",
        default=["multi_krum", "median", "flag"],
        metavar="RULE",
        help="rules, as krum or nnm+krum",
    )
    parser.add_argument("--repeats", type=count, default=5, metavar="N", help="runs; medians are reported")


def _rate(text: str) -> int:
    return _bytes(text.removesuffix("/s"))


def _rows_by_columns(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    try:
        n, d = int(rows), int(columns)
    except ValueError:
        n = d = 0
    if n < 3 or d < 1:
        raise argparse.ArgumentTypeError(
            f"should be rows x columns, as 15x1000000, n >= 3. Found {text!r}."
        )
    return n, d


def _bytes(text: str) -> int:
    number, unit = text[:-2], text[-2:].upper()
    if not number.isdecimal() or unit not in UNITS or int(number) == 0:
        raise argparse.ArgumentTypeError(
            f"should be a whole number of KB, MB or GB, as 45MB. Found {text!r}."
        )
    return int(number) * UNITS[unit]


BENCHMARKS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "aggregators": (
        "varangian.bench.aggregators.command",
        "Measure the time of each aggregation rule, as a multiple of the mean's.",
        _aggregators,
    ),
    "wire": ("varangian.bench.wire.command", "Measure transfers of vectors, as ratios to raw TCP.", _wire),
    "round": ("varangian.bench.rounds", "Measure the time that a rule adds to a round.", _round),
}

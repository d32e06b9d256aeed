"""What can be typed. Only argparse is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from varangian import __version__

EPILOG = """\
settings:
  Every key=value replaces one setting of the configuration: aggregator=krum, optimizer.lr=0.1,
  'aggregator={mix: [nnm], rule: krum}'. The same in the environment: VARANGIAN__OPTIMIZER__LR=0.1.
  `varangian check` prints all settings, `varangian list aggregators` the names.

exit codes:
  0  it worked
  1  the run failed, or the server is not healthy
  2  the configuration or the command line is wrong; nothing was started
  130  interrupted; what was written until then is valid
"""
KINDS = ("aggregators", "mixings", "attacks", "datasets", "models", "partitions", "schedules")
FORMATS = ("auto", "rich", "plain", "json")

Arguments = Callable[[argparse.ArgumentParser], None]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; leaves with code 2 when they make no sense."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes positional arguments in one piece; settings may stand between options.
    unknown = [text for text in rest if text.startswith("-") or "settings" not in args]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if "settings" in args:
        _split_config(args, [*args.settings, *rest], parser)
    return args


def _split_config(args: argparse.Namespace, texts: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """The one argument without `=` is the configuration file."""
    files = [text for text in texts if "=" not in text]
    if len(files) > 1:
        parser.error(
            f"there can be one configuration file, and settings are key=value. Found {', '.join(files)}."
        )
    args.config = files[0] if files else None
    args.settings = [text for text in texts if "=" in text]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="varangian",
        description="A Byzantine-robust parameter server for PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"varangian {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (module, summary, add) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.set_defaults(run=module)
        add(sub)
    return parser


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="[CONFIG] [key=value ...]",
        help="a YAML file, and settings on top of it",
    )


def _format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=FORMATS, default="auto", help="auto: rich on a terminal, plain elsewhere"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument("--backend", choices=("processes", "simulate"), help="short for backend=...")
    parser.add_argument("--output", metavar="DIR", help="where run folders are made; short for output=...")
    _format(parser)


def _server(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument("--bind", metavar="HOST:PORT", help="short for server.host=... server.port=...")
    parser.add_argument("--output", metavar="DIR", help="where run folders are made; short for output=...")
    _format(parser)


def _worker(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument("--server", metavar="HOST:PORT", required=True, help="where the server listens")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--name", action="append", help="an identity to work under, as w03; may be repeated")
    who.add_argument(
        "--claim", choices=("honest", "byzantine"), help="work under any free identity of this kind"
    )


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="HOST:PORT", required=True)
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="rounds of every run")
    parser.add_argument("--output", default="runs", metavar="DIR")
    _format(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("aggregators",))
    parser.add_argument("--peers", action="store_true", help="other libraries beside ours, where installed")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_rows_by_columns,
        default=[(15, 10**6), (50, 10**6)],
        metavar="NxD",
        help="workers x parameters; by default 15x1000000 and 50x1000000",
    )
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="as krum, or nnm,krum; by default all")
    parser.add_argument("--threads", type=_count, default=1, metavar="N")
    parser.add_argument("--repeats", type=_count, default=7, metavar="N", help="medians are reported")
    parser.add_argument("--backend", metavar="NAME", help="kernels to insist on; by default the fastest")
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the hardware here")
    parser.add_argument("--png", metavar="FILE", help="write a bar chart here")
    _format(parser)


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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number, at least 1. Found {text!r}.")
    return int(text)


def _nothing(parser: argparse.ArgumentParser) -> None:
    del parser


COMMANDS: dict[str, tuple[str, str, Arguments]] = {
    "demo": ("demo", "Four rules against two attacks, on digits, in under a minute.", _demo),
    "run": ("run", "Train with a server and workers on this machine.", _run),
    "check": ("check", "Print all settings, and whether the rule holds with them.", _settings),
    "server": ("cluster:server", "Only the server; VARANGIAN_SECRET is shared with the workers.", _server),
    "worker": (
        "cluster:worker",
        "Workers for a server elsewhere; VARANGIAN_SECRET is shared with it.",
        _worker,
    ),
    "health": ("health", "Ask a server whether it is serving.", _health),
    "bench": ("bench.aggregators", "What every rule costs, as multiples of a mean.", _bench),
    "list": ("catalogue", "The names that a configuration can use.", _list),
    "schema": ("schema", "Print the JSON Schema of a configuration file.", _nothing),
}

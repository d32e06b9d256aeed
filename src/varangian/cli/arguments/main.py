"""The arguments of `varangian` and its commands. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from varangian import __version__
from varangian.cli.arguments import bench as benchmarks
from varangian.cli.arguments import deploy, durability, enrolment, experiments, members
from varangian.cli.arguments import graph as graph_arguments
from varangian.cli.arguments import status as status_arguments
from varangian.cli.arguments.common import FORK_SERVER, add_format, add_log_format, days, index
from varangian.files import expanded

EPILOG = """\
settings:
  Every key=value replaces one setting of the configuration: aggregator=krum, aggregator=nnm+krum,
  'aggregator={krum: {select: 3}}', optimizer.lr=0.1. The same in the environment:
  VARANGIAN__OPTIMIZER__LR=0.1, or several at once: VARANGIAN_SETTINGS='optimizer.lr=0.1 model=cnn'.
  `varangian check` prints all settings, `varangian list aggregators` the names.

exit codes:
  0  it worked
  1  the run failed, or the server is not healthy
  2  the configuration or the command line is wrong; nothing was started
  130  interrupted by Ctrl-C, 143 by SIGTERM; what was written until then is valid
"""
KINDS = (
    *("aggregators", "mixings", "attacks", "datasets", "models", "losses", "metrics"),
    *("partitions", "optimizers", "schedules"),
    *("graphs", "availability", "delays", "participations", "staleness", "trackers"),
)

REPORT = "varangian.experiments.report.command"
"""`check()` and `open_report(folder)` of this module are called for `varangian run --open`."""

Arguments = Callable[[argparse.ArgumentParser], None]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; leaves with code 2 when they make no sense."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes positional arguments in one piece; settings and names may stand between options.
    takes = any(name in args for name in ("settings", "names", "runs"))
    unknown = [text for text in rest if text.startswith("-") or not takes]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if "resume" in args:
        durability.give_back(args)
    if "settings" in args:
        _split_config(args, [*args.settings, *rest], parser)
    for name in ("names", "runs"):
        if name in args:
            getattr(args, name).extend(rest)
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


def _run(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.set_defaults(prepare=FORK_SERVER)
    parser.set_defaults(report=REPORT)
    parser.add_argument("--backend", choices=("processes", "simulate"), help="short for backend=...")
    parser.add_argument(
        "--output", type=expanded, metavar="DIR", help="the folder of run folders; short for output=..."
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="make the report of the run at its end, and open it in the browser",
    )
    durability.add_resume(parser)
    add_format(parser)
    add_log_format(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument(
        "--static",
        action="store_true",
        help="check the settings alone: build no model, load no data, try no disk and no port",
    )


def _server(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument("--bind", metavar="HOST:PORT", help="short for server.host=... server.port=...")
    _security(parser, "the server's bundle, made by `varangian certs`; with it everything goes over TLS")
    parser.add_argument(
        "--output", type=expanded, metavar="DIR", help="the folder of run folders; short for output=..."
    )
    durability.add_resume(parser)
    parser.add_argument(
        "--until-done",
        action="store_true",
        help="end with 0 only when the run is over, at once if it was, and with 143 after SIGTERM even if "
        "it can go on: for an engine that takes 0 for the end of the run, as a Job of Kubernetes",
    )
    add_format(parser)
    add_log_format(parser)


def _worker(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    add_log_format(parser)
    parser.add_argument("--server", metavar="HOST:PORT", required=True, help="the address of the server")
    _security(parser, "the worker's bundle, or a directory of bundles; needed when the server has one")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--name",
        action="append",
        help="an identity to work under, as w03; may be repeated; by default the one on the certificate",
    )
    who.add_argument(
        "--claim", choices=("honest", "byzantine"), help="work under any free identity of this kind"
    )
    parser.add_argument(
        "--index",
        type=index,
        metavar="I",
        help="with --claim: work under the identity at this place among those of its kind, from 0",
    )


def _security(parser: argparse.ArgumentParser, certs: str) -> None:
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--certs", type=expanded, metavar="DIR", help=f"{certs}; also in VARANGIAN_CERTS")
    way.add_argument(
        "--insecure",
        action="store_true",
        help="allow a network without TLS, where anybody who sees the traffic can impersonate any worker; "
        "also VARANGIAN_INSECURE=1",
    )


def _token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of workers, as w03")
    parser.add_argument(
        "--claim", choices=("honest", "byzantine"), help="all workers of this kind; then key=value for NAME"
    )
    parser.add_argument(
        "--secret",
        type=expanded,
        metavar="FILE",
        help="the server's secret; made if there is no such file. By default VARANGIAN_SECRET[_FILE]",
    )
    parser.add_argument(
        "--out", type=expanded, metavar="FILE", help="write the tokens to a file of mode 0600"
    )


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="HOST:PORT", required=True)
    parser.add_argument(
        "--certs", type=expanded, metavar="DIR", help="a bundle, of the server or of a worker"
    )
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")


def _doctor(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="a server to connect to, as a worker does; settings are then those of a worker here",
    )
    parser.add_argument(
        "--certs",
        type=expanded,
        metavar="DIR",
        help="a bundle, or a directory of bundles, to check and to use with the server",
    )
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")
    add_format(parser)


def _certs(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.add_argument("dir", type=expanded, metavar="DIR", help="the folder of the authority")
        return added

    init = action("init", "Make a certificate authority.")
    init.add_argument("--days", type=days, default=1825.0, metavar="N", help="by default 1825")
    init.add_argument("--keep", action="store_true", help="do nothing when there is one")
    issue = action("issue", "Make a bundle for each worker, or for a server or an operator.")
    issue.add_argument("names", nargs="*", metavar="NAME", help="names of workers, as w00 w01")
    issue.add_argument(
        "--claim", choices=("honest", "byzantine"), help="all workers of this kind; then key=value for NAME"
    )
    _issuing(issue)
    issue.add_argument("--keep", action="store_true", help="replace only bundles that expire soon")
    cluster = action("cluster", "Make all missing credentials: authority, bundles, secret and tokens.")
    cluster.set_defaults(run="varangian.cli.commands.provision")
    _settings(cluster)
    cluster.add_argument(
        "--hosts", default="localhost", metavar="HOSTS", help="names of the server; by default localhost"
    )
    cluster.add_argument("--apart", action="store_true", help="a folder for each honest worker")
    action("list", "List all certificates that were made, and whether each is valid.")
    revoke = action("revoke", "Revoke all certificates of a name, or a single one.")
    revoke.add_argument("name", nargs="?", metavar="NAME")
    revoke.add_argument(
        "--fingerprint", metavar="DIGITS", help="that of one certificate, as `certs list` shows it"
    )
    summary = "Make a key and a certificate request, on the machine that will use the certificate."
    request = actions.add_parser("request", help=summary, description=summary, allow_abbrev=False)
    request.add_argument("name", metavar="NAME", help="the name of a worker, as w03, or of a server")
    request.add_argument(
        "--into", type=expanded, metavar="DIR", help="the parent of the folder NAME; by default here"
    )
    sign = action("sign", "Sign a certificate request; its key stays on the other machine.")
    sign.add_argument("name", metavar="NAME", help="the name on the certificate, whatever the request says")
    sign.add_argument("request", type=expanded, metavar="REQUEST", help="the file of `certs request`")
    _issuing(sign)


def _issuing(parser: argparse.ArgumentParser) -> None:
    """Arguments of a new certificate, for `certs issue` and `certs sign`."""
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--server", nargs="+", metavar="HOST", help="for a server with these host names")
    role.add_argument(
        "--operator", action="store_true", help="for an operator, who may change the workers of a run"
    )
    parser.add_argument("--days", type=days, default=30.0, metavar="N", help="by default 30")
    parser.add_argument(
        "--into",
        type=expanded,
        metavar="DIR",
        help="the folder for bundles; by default beside the authority",
    )
    parser.add_argument("--force", action="store_true", help="replace bundles that exist")
    parser.add_argument(
        "--revoke-old", action="store_true", help="with --force: revoke earlier certificates of the name"
    )


def _plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the folder of a run; several are drawn together"
    )
    parser.add_argument("--out", metavar="FILE", help="by default plot.png in the folder of the first run")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=FORK_SERVER)
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="rounds of every run")
    parser.add_argument("--output", default="runs", type=expanded, metavar="DIR")
    add_format(parser)


def _nothing(parser: argparse.ArgumentParser) -> None:
    del parser


COMMANDS: dict[str, tuple[str, str, Arguments]] = {
    "demo": (
        "varangian.cli.commands.demo",
        "Four rules against two attacks, on digits: one to two minutes on two cores.",
        _demo,
    ),
    "run": ("varangian.cli.commands.run", "Train with a server and workers on this machine.", _run),
    "check": (
        "varangian.cli.commands.check",
        "Print all settings, and do a dry run: everything before the first round.",
        _check,
    ),
    "server": (
        "varangian.cli.commands.server",
        "Start the server alone, with certificates or VARANGIAN_SECRET[_FILE].",
        _server,
    ),
    "worker": (
        "varangian.cli.commands.worker",
        "Start workers of a server elsewhere, with certificates or VARANGIAN_TOKEN[_FILE].",
        _worker,
    ),
    "workers": (
        "varangian.cli.commands.workers",
        "Show the workers of a run that goes on, or change who is one.",
        members.add_workers,
    ),
    "status": (
        "varangian.cli.commands.status",
        "Show where a run stands and what became of each worker; also as a page.",
        status_arguments.add_status,
    ),
    "rewind": (
        "varangian.cli.commands.rewind",
        "List the checkpoints of a run, or make a run that goes on from one of them.",
        durability.add_rewind,
    ),
    "plot": (
        "varangian.experiments.results.figures.plot",
        "Draw accuracy and loss of runs over their rounds, as a picture.",
        _plot,
    ),
    "sweep": (
        "varangian.experiments.sweep.command",
        "Run every point of a grid; again, and it runs only what is missing.",
        experiments.add_sweep,
    ),
    "report": (
        "varangian.experiments.report.command",
        "Write a page about runs: worst cases, curves, trust.",
        experiments.add_report,
    ),
    "audit": (
        "varangian.experiments.audit.command",
        "Check that the record of a run is as its server wrote it.",
        experiments.add_audit,
    ),
    "advise": (
        "varangian.experiments.advice.command",
        "Advise a rule for n, f and the data of workers, with the measured worst case.",
        experiments.add_advise,
    ),
    "redteam": (
        "varangian.experiments.redteam.command",
        "Search for the attack that harms an aggregator most.",
        experiments.add_redteam,
    ),
    "deploy": (
        "varangian.deploy.command",
        "Write the files with which Compose, Swarm, Slurm or Kubernetes carries out a run.",
        deploy.add_deploy,
    ),
    "certs": (
        "varangian.cli.commands.certs",
        "Make, list and revoke the certificates of a cluster.",
        _certs,
    ),
    "join": (
        "varangian.cli.commands.join",
        "Get the certificate of a new worker from a running server, with a token.",
        enrolment.add_join,
    ),
    "token": (
        "varangian.cli.commands.token",
        "Make the token of a worker, at the server, for a run without TLS.",
        _token,
    ),
    "doctor": (
        "varangian.cli.commands.doctor.command",
        "Check this machine, settings, certificates and the way to a server, before a run.",
        _doctor,
    ),
    "health": ("varangian.cli.commands.health", "Ask a server whether it is serving.", _health),
    "bench": (
        "bench",
        "Measure aggregation rules, transfers of vectors and whole rounds.",
        benchmarks.add,
    ),
    "graph": (
        "varangian.cli.commands.graph",
        "Print the figures of communication graphs, and draw them.",
        graph_arguments.add,
    ),
    "list": ("varangian.cli.commands.list", "List the names that a configuration can use.", _list),
    "schema": ("varangian.cli.commands.schema", "Print the JSON Schema of a configuration file.", _nothing),
}

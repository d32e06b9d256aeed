"""The arguments of `varangian status`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse

from varangian.cli.arguments.common import add_format
from varangian.files import expanded


def add_status(parser: argparse.ArgumentParser) -> None:
    """Arguments of `varangian status`."""
    parser.add_argument(
        "run_folder",
        nargs="?",
        type=expanded,
        metavar="RUN",
        help="the folder of a run, over or not, or one with such folders, for the newest; by default runs/",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--server", metavar="HOST:PORT", help="ask a server instead, at its server.port")
    source.add_argument(
        "--url", metavar="URL", help="ask a server at its server.metrics_port, as http://127.0.0.1:9464"
    )
    parser.add_argument(
        "--certs",
        type=expanded,
        metavar="DIR",
        help="a bundle to show to the server; that of an operator is told about each worker",
    )
    parser.add_argument(
        "--token-file", type=expanded, metavar="FILE", help="for --url: the file of server.metrics_token"
    )
    parser.add_argument("--watch", action="store_true", help="go on until the run is over")
    parser.add_argument(
        "--serve",
        nargs="?",
        type=_port,
        const=0,
        metavar="PORT",
        help="show the page of the run at this port of this machine, by default any free one",
    )
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")
    add_format(parser)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"should be a port, from 0 to 65535. Found {text!r}.")
    return int(text)

"""The arguments of `varangian join`."""

from __future__ import annotations

import argparse

from varangian.files import expanded


def add_join(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command by which a new worker gets its certificate."""
    parser.add_argument(
        "server", metavar="HOST:PORT", help="where the server takes such requests: its server.enrol_port"
    )
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument(
        "--token",
        metavar="T",
        help="that of `varangian workers invite`; other users of this machine see it",
    )
    token.add_argument("--token-file", type=expanded, metavar="FILE", help="a file that holds it")
    parser.add_argument(
        "--into", type=expanded, metavar="DIR", help="the parent of the folder NAME; by default here"
    )

"""The arguments of `varangian workers`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse

from varangian.cli.arguments.common import days
from varangian.files import expanded

ACTIONS = {
    "list": "Show the workers of a run, and what each of them does.",
    "admit": "Take a worker into the run; it needs a certificate of its name.",
    "drain": "Let a worker go after the open round, for which its vector still counts.",
    "expel": "End all calls of a worker at once; nothing of it that is not used yet counts.",
    "invite": "Make a token with which a new worker can ask for its certificate.",
    "leave": "Leave the run for good, with the bundle of the worker itself.",
}


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Arguments of `varangian workers`."""
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    for name, summary in ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name not in ("list", "leave"):
            action.add_argument("name", metavar="NAME", help="the name of a worker, as w03")
        if name in ("admit", "drain", "expel"):
            action.add_argument(
                "--f",
                type=_f,
                metavar="F",
                help="the number of workers that may be Byzantine after it; by default as before: a "
                "worker that leaves need not be one of them",
            )
        action.add_argument(
            "--server", metavar="HOST:PORT", required=True, help="the address of the server"
        )
        whose = "the worker" if name == "leave" else "an operator"
        made = "" if name == "leave" else ", made by `varangian certs issue DIR --operator NAME`"
        action.add_argument(
            "--certs",
            type=expanded,
            metavar="DIR",
            help=f"the bundle of {whose}{made}; also in VARANGIAN_CERTS",
        )
        if name == "admit":
            action.add_argument(
                "--authority",
                type=expanded,
                metavar="DIR",
                help="sign the request of a worker that waits with `varangian join`, with the authority in "
                "this folder",
            )
            action.add_argument(
                "--fingerprint",
                metavar="DIGITS",
                help="with --authority: sign it only for the public key with these digits, as "
                "`varangian join` prints them",
            )
            action.add_argument(
                "--days",
                type=days,
                metavar="N",
                help="with --authority: valid for so long; by default 30",
            )
        action.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
        if name == "list":
            action.add_argument("--json", action="store_true", help="one JSON object a line")


def _f(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"should be a whole number, at least 0. Found {text!r}.")
    return int(text)

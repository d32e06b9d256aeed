"""Arguments that several commands have. Nothing heavy is imported here."""

from __future__ import annotations

import argparse

FORK_SERVER = "varangian.launch.children.fork_server"
"""`start()` of this module is called before the command is imported: both import torch at the same time."""
FORMATS = ("auto", "rich", "plain", "json")
LOG_FORMATS = ("text", "json")


def add_format(parser: argparse.ArgumentParser) -> None:
    """`--format`: how a command shows what it does."""
    parser.add_argument(
        "--format", choices=FORMATS, default="auto", help="auto: rich on a terminal, plain elsewhere"
    )


def add_log_format(parser: argparse.ArgumentParser) -> None:
    """`--log-format`: how log lines are written."""
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help="json: one object for each event, with time, level, event, message, run, round and worker; "
        "progress, too, unless --format says another; also VARANGIAN_LOG_FORMAT",
    )


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number, at least 1. Found {text!r}.")
    return int(text)


def index(text: str) -> int:
    """A place in a list, from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"should be a whole number from 0. Found {text!r}.")
    return int(text)


def days(text: str) -> float:
    """For which a certificate is valid."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 36500:
        raise argparse.ArgumentTypeError(f"should be a number of days above 0. Found {text!r}.")
    return found

"""The arguments of runs that go on after they were stopped or killed. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from pathlib import Path

from varangian.cli.arguments.common import count
from varangian.files import expanded

NEWEST = ""
"""The value of `--resume` without a folder."""


def add_resume(parser: argparse.ArgumentParser) -> None:
    """`--resume` and `--force`."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        type=_folder,
        metavar="RUN",
        help="go on with the run in this folder; without one with the newest of these settings that has "
        "rounds left, and begin a new one if there is none",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --resume: go on although settings have changed that the numbers depend on, no "
        "checkpoint can be used, or a server on another machine may still work in the folder",
    )


def _folder(text: str) -> str:
    """A folder; argparse asks for the value without one, too."""
    return NEWEST if text == NEWEST else expanded(text)


def give_back(args: argparse.Namespace) -> None:
    """Give a value of `--resume` that is a setting or a configuration file back to the settings."""
    found = args.resume
    if found and not Path(found).is_dir() and ("=" in found or Path(found).is_file()):
        args.settings, args.resume = [*args.settings, found], NEWEST


def add_rewind(parser: argparse.ArgumentParser) -> None:
    """Arguments of `varangian rewind`."""
    parser.add_argument("folder", type=expanded, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--round", type=count, metavar="R", help="the round of a checkpoint: make a run that begins with it"
    )
    parser.add_argument(
        "--output", type=expanded, metavar="DIR", help="the folder of the new run; by default RUN-rR"
    )

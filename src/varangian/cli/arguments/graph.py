"""The arguments of `varangian graph`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse

from varangian.files import expanded

MOST_WORKERS = 1024
"""Workers; figures of larger graphs take minutes."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="GRAPH",
        help="a graph, as ring or '{random_regular: {degree: 3}}'; by default all",
    )
    parser.add_argument(
        "-n", type=_workers, default=16, metavar="N", help="number of workers; by default 16"
    )
    parser.add_argument("-f", type=_tolerance, metavar="F", help="number that may be Byzantine")
    parser.add_argument("--rule", metavar="RULE", help="check whether the rule holds in all neighbourhoods")
    parser.add_argument("--png", type=expanded, metavar="FILE", help="draw the graph here")


def _workers(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"should be 2 to {MOST_WORKERS} workers. Found {text!r}.")
    return int(text)


def _tolerance(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"should be a whole number, at least 0. Found {text!r}.")
    return int(text)

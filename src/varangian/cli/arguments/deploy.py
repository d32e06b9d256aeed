"""The arguments of `varangian deploy`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
import re

from varangian.cli.arguments.common import count
from varangian.files import expanded

EMITTERS = {
    "compose": "varangian.deploy.compose",
    "swarm": "varangian.deploy.swarm",
    "slurm": "varangian.deploy.slurm",
    "kubernetes": "varangian.deploy.kubernetes.render",
}
"""The engines, with the module that has `render(config, options)` for each."""
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?")


def add_deploy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", choices=(*EMITTERS,), help="what starts the tasks")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="[RUN.yaml] [key=value ...]",
        help="the configuration of the run, and settings on top of it",
    )
    parser.add_argument(
        "-o", "--out", type=expanded, required=True, metavar="DIR", help="the folder for the files"
    )
    parser.add_argument("--force", action="store_true", help="replace files in a folder that has some")
    parser.add_argument(
        "--image",
        type=image,
        default="varangian",
        metavar="NAME",
        help="the image of all tasks, best by its digest, as NAME@sha256:...; by default varangian",
    )
    parser.add_argument(
        "--memory", type=size, default=size("1g"), metavar="SIZE", help="of a worker, as 1g or 512m"
    )
    parser.add_argument(
        "--server-memory",
        type=size,
        default=size("2g"),
        metavar="SIZE",
        help="of the server",
    )
    parser.add_argument(
        "--rows",
        type=size,
        metavar="SIZE",
        help="kubernetes: of the volume for server.rows_folder and participation.fedlaavg.folder",
    )
    parser.add_argument("--cpus", type=processors, default=1.0, metavar="N", help="of a worker, as 0.5")
    parser.add_argument("--server-cpus", type=processors, default=1.0, metavar="N", help="of the server")
    parser.add_argument(
        "--gpus",
        type=count,
        metavar="N",
        help="GPUs of a worker; by default 1 with worker.device=cuda, and none otherwise",
    )
    parser.add_argument(
        "--variables",
        action="store_true",
        help="compose: settings are variables with a default, as AGGREGATOR, in place of a file",
    )


def image(text: str) -> str:
    """The name of an image, with a tag or a digest."""
    if not IMAGE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"should be the name of an image, as registry.example/varangian@sha256:... Found {text!r}."
        )
    return text


def size(text: str) -> int:
    """Bytes, from `512m`."""
    found = SIZE.fullmatch(text.strip())
    bytes_ = int(float(found[1]) * UNITS[found[2].lower()]) if found else 0
    if bytes_ < 1 << 20:
        raise argparse.ArgumentTypeError(f"should be an amount of memory, as 512m or 2g. Found {text!r}.")
    return bytes_


def processors(text: str) -> float:
    """A positive number of processors; a part of one, too."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"should be a number of processors above 0. Found {text!r}.")
    return found

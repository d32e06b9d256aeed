"""Checks of the output files of a benchmark, before anything is measured."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from varangian.cli.main import CommandError


def check_outputs(args: argparse.Namespace) -> None:
    """Raises CommandError when what was asked for could not be written at the end."""
    png = getattr(args, "png", None)
    for path in filter(None, (args.json, png)):
        if not Path(path).absolute().parent.is_dir():
            raise CommandError(f"{path} cannot be written: there is no such folder.")
    if png:
        _needs_matplotlib()


def _needs_matplotlib() -> None:
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise CommandError(
            "--png needs matplotlib: install the extra `report` (pip install 'varangian[report]')."
        ) from error

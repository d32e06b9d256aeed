"""`varangian deploy`: write the files with which an engine carries a run out."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from varangian.cli.arguments.deploy import EMITTERS
from varangian.cli.main import OK, CommandError
from varangian.config import RunConfig, load
from varangian.deploy.emitter import Emitter, File, Options
from varangian.deploy.plan import Resources, needs, rows_settings
from varangian.files import write_atomically
from varangian.protos.text import escape
from varangian.registry import ConfigError, Problem

README = "README.md"
LONGEST_NOTE = 500
"""Characters of a note."""
LONGEST_NAME = 40
"""Characters: names of Kubernetes have 63, with the role and the index of a task behind this one."""


def command(args: argparse.Namespace) -> int:
    """Write the files of a deployment."""
    config = read_settings(args)
    check_token(args.engine, config)
    options = read_options(args, config)
    emitter: Emitter = importlib.import_module(EMITTERS[args.engine]).render
    folder = Path(args.out)
    files = emitter(config, options)
    check_free(folder, force=args.force)
    write(folder, files)
    for file in files:
        print(folder / file.path)
    for text in needs(config):
        print(f"note: the tasks need {escape(text, LONGEST_NOTE)} where they run")
    print(f"next: {folder / README}")
    return OK


def read_settings(args: argparse.Namespace) -> RunConfig:
    """The settings of the run. Folders for vectors are on the machine of its server, not on this one.

    Raises:
        ConfigError: they are wrong.
    """
    try:
        return load(args.config, args.settings, os.environ)
    except ConfigError as error:
        config = load(args.config, args.settings, os.environ, whole=False)
        folders = rows_settings(config)
        if problems := [problem for problem in error.problems if problem.path not in folders]:
            raise ConfigError(problems) from None
        return config


def read_options(args: argparse.Namespace, config: RunConfig) -> Options:
    """The options of the command line.

    Raises:
        ConfigError: they contradict each other.
    """
    if args.variables and args.engine != "compose":
        raise ConfigError([Problem("--variables", "is of use with compose only")])
    if args.rows and args.engine != "kubernetes":
        rule = "is of use with kubernetes only: elsewhere the files have the room of their disk"
        raise ConfigError([Problem("--rows", rule)])
    if args.rows and not rows_settings(config):
        rule = "is of use where the settings want files for vectors, and these want none"
        hint = "Set server.rows_folder, or leave --rows out."
        raise ConfigError([Problem("--rows", rule, hint=hint)])
    uses_gpu = config.worker.device.startswith("cuda")
    if args.gpus and not uses_gpu:
        hint = "Add worker.device=cuda."
        raise ConfigError([Problem("--gpus", "is of use where workers compute on one", args.gpus, hint)])
    gpus = (args.gpus or 1) if uses_gpu else 0
    return Options(
        name=name_of(args.config),
        image=args.image,
        worker=Resources(cpus=args.cpus, memory=args.memory, gpus=gpus),
        server=Resources(cpus=args.server_cpus, memory=args.server_memory, rows=args.rows or 0),
        made_by=made_by(args),
        variables=args.variables,
    )


def check_token(engine: str, config: RunConfig) -> None:
    """Refuse a file of this machine where tasks see other files.

    Raises:
        ConfigError: the settings name one.
    """
    if engine != "slurm" and (path := config.server.metrics_token) is not None:
        rule = "is a file of this machine, which the server does not see there"
        hint = "Leave it out: `varangian certs cluster` makes a token for the metrics port."
        raise ConfigError([Problem("server.metrics_token", rule, path, hint)])


def name_of(config: str | None) -> str:
    """The name of a run after its file: letters a to z, digits and hyphens, as every engine takes it."""
    stem = "" if config is None else Path(config).stem.lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:LONGEST_NAME].strip("-")
    if not name or name == "run":
        return "varangian"
    return name if name[0].isalpha() else f"run-{name}"[:LONGEST_NAME].strip("-")


def made_by(args: argparse.Namespace) -> str:
    """The command as it can be typed again, in one line."""
    words = ["varangian", "deploy", args.engine]
    words += [Path(args.config).name] if args.config is not None else []
    words += args.settings
    for option in ("image", "memory", "server_memory", "cpus", "server_cpus", "gpus", "rows"):
        value = getattr(args, option)
        if value is not None and value != DEFAULTS[option]:
            words += [
                f"--{option.replace('_', '-')}",
                f"{value:g}" if isinstance(value, float) else str(value),
            ]
    words += ["--variables"] if args.variables else []
    return shlex.join([*words, "-o", "DIR"])


DEFAULTS = {
    "image": "varangian",
    "memory": 1 << 30,
    "server_memory": 2 << 30,
    "cpus": 1.0,
    "server_cpus": 1.0,
    "gpus": None,
    "rows": None,
}


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse a folder with files of somebody else.

    Raises:
        CommandError: there are some, and nobody said to replace them; or it is no folder.
    """
    try:
        found = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise CommandError(f"-o should be a folder. {folder}, or what it is to be in, is a file") from None
    except OSError as error:
        raise CommandError(f"{folder} cannot be read: {error.strerror}") from error
    if found and not force:
        some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise CommandError(f"{folder} should be empty. Found {some}. Choose another folder, or add --force")


def write(folder: Path, files: Iterable[File]) -> None:
    """Write the files, each as a whole.

    Raises:
        CommandError: one cannot be written.
    """
    try:
        for file in files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, file.text.encode(), file.mode)
    except OSError as error:
        raise CommandError(f"{error.filename or folder} cannot be written: {error.strerror}") from error

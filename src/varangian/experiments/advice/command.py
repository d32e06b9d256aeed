"""`varangian advise`: print the rule to use, and why."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from varangian.cli.main import OK
from varangian.config.overrides import Assignment, apply_overrides, from_command_line, from_environment
from varangian.config.settings import groups
from varangian.config.yaml_text import read
from varangian.experiments.advice.advice import advise
from varangian.experiments.advice.question import ask
from varangian.files import user_path
from varangian.registry import ConfigError, Problem


def command(args: argparse.Namespace) -> int:
    """Print advice as text, or as JSON."""
    written = {} if args.config is None else read(user_path(args.config))
    assignments = [*from_environment(os.environ), *from_command_line(args.settings), *_options(args)]
    settings = apply_overrides(written, assignments, groups())
    question = ask(settings, declared=args.declared, parameters=args.parameters, threat=args.threat)
    found = advise(question)
    print(json.dumps(found.plain(), indent=2) if args.json else found)
    return OK


def _options(args: argparse.Namespace) -> Iterator[Assignment]:
    """The options that are short for a setting."""
    short: dict[str, Any] = {"workers": args.workers, "f": args.f, "worker.momentum": args.momentum}
    partition = args.partition
    if args.alpha is not None:
        if partition not in (None, "dirichlet"):
            rule = "belongs to --partition dirichlet"
            raise ConfigError([Problem("--alpha", rule, args.alpha, f"--partition is {partition}.")])
        partition = {"dirichlet": {"alpha": args.alpha}}
    short["partition"] = partition
    yield from (Assignment(path, value, path) for path, value in short.items() if value is not None)

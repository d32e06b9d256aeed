"""`varangian check`: print all settings, and try what a run does before its first round."""

from __future__ import annotations

import argparse
import os
import sys

from varangian.cli.main import OK, USAGE
from varangian.config import RunConfig, advice, load
from varangian.config.yaml_text import dump

STATIC = "# not tried: data, model, device, memory, output folder and ports (leave out --static)"


def command(args: argparse.Namespace) -> int:
    """Print every setting of the run, what the rule says about its numbers, and whether it would start."""
    config = load(args.config, args.settings, os.environ)
    print(dump(config.resolved()), end="")
    print(f"\n# {verdict(config)}")
    for sentence in advice(config):
        print(f"warning: {sentence}", file=sys.stderr)
    if args.static:
        print(STATIC)
        return OK
    return _rehearse(config)


def _rehearse(config: RunConfig) -> int:
    from varangian.launch.dry_run import rehearse

    found = rehearse(config)
    for sentence in found.worked:
        print(f"# ok: {sentence}")
    for sentence in found.untried:
        print(f"# not tried: {sentence}")
    for sentence in found.notes:
        print(f"warning: {sentence}", file=sys.stderr)
    if not found.problems:
        return OK
    many = "Problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
    print(f"{many} that would stop this run:", file=sys.stderr)
    for problem in found.problems:
        print(f"  {problem}", file=sys.stderr)
    return USAGE


def verdict(config: RunConfig) -> str:
    """The condition that holds, as a sentence; `load` has refused a rule whose condition fails."""
    rows = config.participation.sentence(config.workers, config.f, config.quorum)
    return f"ok: the condition of the rule holds with {rows}."

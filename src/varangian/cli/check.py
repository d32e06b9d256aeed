"""`varangian check`."""

from __future__ import annotations

import argparse
import os
import sys

from varangian.config import RunConfig, advice, load
from varangian.config.text import dump


def command(args: argparse.Namespace) -> int:
    """Print every setting of the run, and what the rule says about its numbers."""
    config = load(args.config, args.settings, os.environ)
    print(dump(config.resolved()), end="")
    print(f"\n# {verdict(config)}")
    for sentence in advice(config):
        print(f"warning: {sentence}", file=sys.stderr)
    return 0


def verdict(config: RunConfig) -> str:
    """What holds, as a sentence; `load` has refused a rule whose condition fails."""
    rows = f"{config.quorum} of {config.workers} workers, of which f = {config.f} may be Byzantine"
    return f"ok: what the rule asks for is met by a quorum of {rows}."

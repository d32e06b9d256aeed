"""`varangian check`."""

from __future__ import annotations

import argparse
import os
import sys

from varangian.config import RunConfig, advice, load
from varangian.config.text import dump
from varangian.server.policies import FedLaAvg, Sync


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
    n, may = config.workers, f"of which f = {config.f} may be Byzantine"
    match config.participation:
        case Sync():
            rows = f"a quorum of {config.quorum} of {n} workers, {may}"
        case FedLaAvg():
            rows = f"the latest vectors of {n} workers, {may}"
        case way:
            rows = f"{way.rows(n, config.quorum)[0]} vectors, the fewest that make a round, {may}"
    return f"ok: what the rule asks for is met by {rows}."

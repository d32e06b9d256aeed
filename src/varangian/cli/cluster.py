"""`varangian server` and `varangian worker`: the programs of a run on several machines."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import time
from contextlib import closing

import grpc

from varangian.backends.processes import served
from varangian.backends.result import RunError, RunResult
from varangian.backends.session import Session
from varangian.cli.health import reason, status
from varangian.cli.main import CommandError
from varangian.cli.progress import Progress, progress
from varangian.cli.run import CODES, with_shortcuts
from varangian.config import RunConfig, load
from varangian.config.build import byzantine_names, honest_names, task
from varangian.registry import ConfigError, Problem, suggestion
from varangian.server.roster import SECRET_BYTES, Roster, make_token
from varangian.worker.host import host
from varangian.worker.names import names

SECRET = "VARANGIAN_SECRET"
PATIENCE = 300.0
"""Seconds that a worker waits for its server to come up."""
PAUSE = 2.0


def server(args: argparse.Namespace) -> int:
    """Serve one run to workers elsewhere."""
    config = load(args.config, [*with_shortcuts(args), *_bound(args.bind)], os.environ, whole=False)
    key = secret()
    log_to_stderr(logging.WARNING)
    try:
        with progress(args.format, config.rounds, ()) as shown:
            result = asyncio.run(_serve(config, key, shown))
        shown.finish(result)
    except RunError as error:
        raise CommandError(str(error)) from error
    return CODES[result.outcome]


def worker(args: argparse.Namespace) -> int:
    """Work for a server elsewhere, until its run is finished."""
    config = load(args.config, args.settings, os.environ, whole=False)
    chosen = _chosen(args, config)
    if set(chosen) & set(byzantine_names(config)) and config.byzantine.attack is None:
        hint = "Add byzantine.attack=sign_flip, for example."
        raise ConfigError([Problem("byzantine.attack", "is needed by a Byzantine worker", hint=hint)])
    tokens = {name: make_token(name, secret()) for name in chosen}
    log_to_stderr(logging.INFO)
    wait_for(args.server, PATIENCE)
    threads, one_of = config.worker.threads, args.claim is not None
    return host(args.server, chosen, tokens, task(config), threads, one_of=one_of)


def log_to_stderr(level: int) -> None:
    """Where whoever runs a program of a cluster looks for its log."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level)


def secret() -> bytes:
    """What server and workers share, from the environment: arguments can be seen by every user.

    Raises:
        CommandError: it is missing, or too short.
    """
    key = os.environ.get(SECRET, "").encode()
    if len(key) < SECRET_BYTES:
        found = f"Found {len(key)} bytes" if key else "It is not set"
        raise CommandError(
            f"the environment variable {SECRET} should hold at least {SECRET_BYTES} bytes, the same for "
            f"the server and all workers. {found}. For example: {SECRET}=$(openssl rand -hex 32)"
        )
    return key


def wait_for(server: str, patience: float) -> None:
    """Return once the server answers.

    Raises:
        CommandError: it did not in `patience` seconds.
    """
    until = time.monotonic() + patience
    told = False
    while True:
        try:
            status(server, PAUSE)
        except grpc.RpcError as error:
            if time.monotonic() > until:
                raise CommandError(
                    f"the server {server} did not answer in {patience:g} s ({reason(error)}). "
                    "Is it running, and can it be reached from here?"
                ) from None
            if not told:
                print(f"waiting for the server {server} ({reason(error)})", file=sys.stderr)
            told = True
        else:
            return
        # Workers that start together should not all ask together.
        time.sleep(PAUSE * random.uniform(0.5, 1.0))


async def _serve(config: RunConfig, key: bytes, shown: Progress) -> RunResult:
    session = Session.open(config, shown.round)
    roster = Roster(session.machine.policy.workers, key)
    with closing(session.folder), session.stop.on_signals(shown.note):
        ended = await served(session, roster, lambda address: shown.note(f"serving at {address}"))
        return session.result(ended)


def _bound(address: str | None) -> list[str]:
    """`--bind HOST:PORT` as settings."""
    if address is None:
        return []
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError([Problem("--bind", "should be HOST:PORT", address)])
    return [f"server.host='{host.strip('[]')}'", f"server.port={port}"]


def _chosen(args: argparse.Namespace, config: RunConfig) -> tuple[str, ...]:
    """The names to work under, or of which to take one."""
    if args.claim is not None:
        return _shuffled(honest_names(config) if args.claim == "honest" else byzantine_names(config))
    known = names(config.workers)
    unknown = [name for name in args.name or () if name not in known]
    if unknown:
        raise ConfigError(
            [
                Problem("--name", "there is no such worker", name, suggestion(name, known))
                for name in unknown
            ]
        )
    return tuple(sorted(set(args.name)))


def _shuffled(candidates: tuple[str, ...]) -> tuple[str, ...]:
    """In an order of its own for each process, so that those which start together rarely collide."""
    if not candidates:
        raise ConfigError([Problem("byzantine.count", "should be at least 1 to claim a Byzantine name", 0)])
    return tuple(random.sample(candidates, len(candidates)))

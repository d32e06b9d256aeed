"""`varangian server` and `varangian worker`: the programs of a run on several machines."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import inf
from pathlib import Path

from varangian.cli.classes import asks_for_classes, classes_at
from varangian.cli.commands.run import exit_code, with_shortcuts
from varangian.cli.commands.token import held, proofs, secret
from varangian.cli.credentials import Choice, check, check_address, choice, warn
from varangian.cli.main import CommandError
from varangian.cli.views.progress import Progress, progress
from varangian.config import RunConfig, load
from varangian.config.build import byzantine_names, honest_names, task, worker_names
from varangian.launch.output.logs import log_to_stderr
from varangian.launch.processes import check_port, serve_run
from varangian.launch.result import RunError, RunResult
from varangian.launch.server_run import ServerRun
from varangian.protos.identity.bundle import CERTIFICATE, Bundle, BundleError, Role
from varangian.protos.network import descriptors
from varangian.protos.network.address import EVERYWHERE, AddressError, parse_address
from varangian.protos.network.descriptors import check_free
from varangian.registry import ConfigError, Problem, suggestion
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.worker.host import host
from varangian.worker.signals import SIGNALLED
from varangian.worker.transport.tls import bundle_of


def server(args: argparse.Namespace) -> int:
    """Serve one run to workers elsewhere."""
    settings = [*with_shortcuts(args), *_bound(args.bind)]
    config = load(args.config, settings, os.environ, whole=False)
    chosen = choice(args)
    check(chosen, config.server.host)
    config = as_served(config, chosen)
    identity = secret() if chosen.certs is None else _security(chosen.certs)
    log_to_stderr(logging.WARNING)
    warn(chosen, config.server.host)
    try:
        with progress(args.format, config.rounds, ()) as shown:
            check_free()
            result = asyncio.run(_serve(config, identity, shown))
        shown.finish(result)
    except RunError as error:
        raise CommandError(str(error)) from error
    return exit_code(result)


def worker(args: argparse.Namespace) -> int:
    """Work for a server elsewhere, until its run is finished."""
    config = load(args.config, args.settings, os.environ, whole=False)
    way = choice(args)
    tokens = held() if way.certs is None else {}
    chosen = _chosen(args, config, way.certs, tokens)
    check_address(way, args.server)
    if set(chosen) & set(byzantine_names(config)) and config.byzantine.attack is None:
        hint = "Add byzantine.attack=sign_flip, for example."
        raise ConfigError([Problem("byzantine.attack", "is needed by a Byzantine worker", hint=hint)])
    shown = proofs(chosen, args.server, tokens) if way.certs is None else _bundles(chosen, way.certs)
    log_to_stderr(logging.INFO)
    warn(way, parse_address(args.server)[0])
    threads, one_of, patience = config.worker.threads, args.claim is not None, config.worker.patience
    todo = task(config)
    if asks_for_classes(config):
        bundle = next((proof for proof in shown.values() if isinstance(proof, Bundle)), None)
        # Data here may have fewer classes than that of the server, and the model is the same.
        todo = replace(todo, classes=classes_at(args.server, bundle, patience or inf))
    code = host(args.server, chosen, shown, todo, threads, one_of=one_of, patience=patience or inf)
    if code > SIGNALLED:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End at once: after a signal nobody waits for threads that may still wait for a server."""
    logging.shutdown()
    os._exit(code)


def as_served(config: RunConfig, chosen: Choice) -> RunConfig:
    """The configuration with TLS as it is, and a seed for the server's own draws that no worker knows.

    The run folder has both: from there the run can be repeated once it is over.

    Raises:
        ConfigError: more was asked for than is done.
    """
    if config.server.tls and chosen.certs is None:
        rule = "needs --certs DIR here; only `varangian run` makes certificates"
        raise ConfigError([Problem("server.tls", rule, True)])
    seed = secrets.randbits(63) if config.server.seed is None else config.server.seed
    server = config.server.model_copy(update={"seed": seed, "tls": chosen.certs is not None})
    return config.model_copy(update={"server": server})


async def _serve(config: RunConfig, identity: bytes | Security, shown: Progress) -> RunResult:
    check_port(config)
    session = ServerRun.open(config, shown.round, shown.note)
    for sentence in session.sentences:
        shown.note(sentence)
    workers = session.machine.policy.workers
    if isinstance(identity, Security):
        sessions, security = (
            Sessions(workers, None, certificate_reader=identity.certificate_reader),
            identity,
        )
    else:
        sessions, security = Sessions(workers, identity), None
    how = "with TLS" if security else "without TLS"
    files = descriptors.sentence(len(workers), config.server.data_port is not None)
    with closing(session), session.stop.on_signals(shown.note):

        def ready(address: str) -> None:
            shown.note(f"serving at {address}, {how}; {files}")

        return session.result(await serve_run(session, sessions, ready, security, returns=True))


def _security(path: Path) -> Security:
    try:
        return Security(path)
    except BundleError as error:
        raise CommandError(str(error)) from error


def _bundles(chosen: Sequence[str], certs: Path) -> dict[str, Bundle]:
    """The bundle that the process shows for each of its workers.

    Raises:
        CommandError: a bundle is missing, or it is that of another worker.
    """
    try:
        bundles = {name: bundle_of(certs, name) for name in chosen}
    except BundleError as error:
        raise CommandError(str(error)) from error
    for name, bundle in bundles.items():
        if bundle.name != name:
            raise CommandError(
                f"{bundle.path} should be the bundle of {name}. Found that of {bundle.name}. "
                f"Use --name {bundle.name}, or the directory that has all bundles."
            )
    return bundles


def _bound(address: str | None) -> list[str]:
    """`--bind HOST:PORT` as settings; `*` is every address of this machine."""
    if address is None:
        return []
    anywhere = address.removeprefix(f"{EVERYWHERE}:")
    try:
        host, port = parse_address(address if anywhere == address else f"localhost:{anywhere}")
    except AddressError as error:
        raise ConfigError([Problem("--bind", error.rule, address, error.hint)]) from None
    return [f"server.host='{host if anywhere == address else EVERYWHERE}'", f"server.port={port}"]


def _chosen(
    args: argparse.Namespace, config: RunConfig, certs: Path | None, tokens: Mapping[str, str]
) -> tuple[str, ...]:
    """The names to work under, or of which to take one."""
    if args.claim is not None:
        kind = honest_names(config) if args.claim == "honest" else byzantine_names(config)
        return _shuffled(_with_token(kind, tokens) if certs is None else _held(kind, certs))
    known = worker_names(config)
    only = list(tokens) if len(tokens) == 1 else None
    named = args.name or only or [_certified(certs)]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ConfigError(
            [
                Problem("--name", "there is no such worker", name, suggestion(name, known))
                for name in unknown
            ]
        )
    return tuple(sorted(set(named)))


def _with_token(candidates: tuple[str, ...], tokens: Mapping[str, str]) -> tuple[str, ...]:
    """Those whose tokens are here; all of them where it is the secret that is here."""
    having = tuple(name for name in candidates if name in tokens) if tokens else candidates
    if candidates and not having:
        found = f"Found tokens of {', '.join(tokens)}"
        raise CommandError(f"there should be a token of one of {', '.join(candidates)}. {found}")
    return having


def _held(candidates: tuple[str, ...], certs: Path) -> tuple[str, ...]:
    """Those whose bundles are here; a program need not have everybody's."""
    if (certs / CERTIFICATE).is_file():
        held = tuple(name for name in candidates if name == _certified(certs))
    else:
        held = tuple(name for name in candidates if (certs / name / CERTIFICATE).is_file())
    if candidates and not held:
        raise CommandError(f"{certs} should have the bundle of one of {', '.join(candidates)}. Found none.")
    return held


def _certified(certs: Path | None) -> str:
    """The name on the certificate, where there is just one."""
    if certs is None or not (certs / CERTIFICATE).is_file():
        hint = "Add --name w00, --claim honest, or --certs with the bundle of one worker, or its token."
        raise ConfigError([Problem("--name", "is needed to know which worker this is", hint=hint)])
    try:
        return Bundle.load(certs, Role.WORKER).name
    except BundleError as error:
        raise CommandError(str(error)) from error


def _shuffled(candidates: tuple[str, ...]) -> tuple[str, ...]:
    """In an order of its own for each process, so that those which start together rarely collide."""
    if not candidates:
        raise ConfigError([Problem("byzantine.count", "should be at least 1 to claim a Byzantine name", 0)])
    return tuple(random.sample(candidates, len(candidates)))

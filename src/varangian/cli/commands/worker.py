"""`varangian worker`: workers for a server elsewhere, until its run is finished."""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import grpc

from varangian.cli.commands.health import diagnose_call, status
from varangian.cli.credentials import check_address, read_choice
from varangian.cli.main import CommandError
from varangian.cli.tokens import proofs, tokens_of_environment
from varangian.config import RunConfig, load
from varangian.config.build import task
from varangian.files import user_path
from varangian.launch.output.logs import log_to_stderr
from varangian.protos.identity.bundle import CERTIFICATE, Bundle, BundleError, Role
from varangian.protos.identity.credentials import warn_without_tls
from varangian.protos.network.address import parse_address
from varangian.registry import ConfigError, Problem, suggestion
from varangian.structured_logs import event, log_format
from varangian.telemetry import open_telemetry
from varangian.worker.checkpoints.folders import state_folders
from varangian.worker.data.partition import Shared
from varangian.worker.host import host
from varangian.worker.signals import SIGNALLED
from varangian.worker.transport.tls import load_worker_bundle

log = logging.getLogger(__name__)

STATUS_INTERVAL = 2.0
"""Seconds between two status calls to the server, and for an answer."""
REMINDER = 60.0
"""Seconds between two log lines about a server that does not answer."""


def command(args: argparse.Namespace) -> int:
    """Work for a server elsewhere, until its run is finished."""
    form = log_format(args.log_format)
    config = load(args.config, args.settings, os.environ, whole=False)
    security = read_choice(args)
    config = with_newcomer(args, config, security.certs)
    tokens = tokens_of_environment() if security.certs is None else {}
    chosen = _names_to_use(args, config, security.certs, tokens)
    check_address(security, args.server)
    if set(chosen) & set(config.byzantine_names) and config.byzantine.attack is None:
        hint = "Add byzantine.attack=sign_flip, for example."
        raise ConfigError([Problem("byzantine.attack", "is needed by a Byzantine worker", hint=hint)])
    shown = (
        proofs(chosen, args.server, tokens) if security.certs is None else _bundles(chosen, security.certs)
    )
    if config.worker.traces:
        _check_traces()
    log_to_stderr(logging.INFO, form)
    warn_without_tls(security, parse_address(args.server)[0])
    threads, one_of, patience = config.worker.threads, args.claim is not None, config.worker.patience
    work = task(config)
    if needs_classes(config):
        bundle = next((proof for proof in shown.values() if isinstance(proof, Bundle)), None)
        # Data here may have fewer classes than that of the server, and the model is the same.
        work = replace(work, classes=ask_for_classes(args.server, bundle, patience or inf))
    code = host(
        args.server,
        chosen,
        shown,
        work,
        threads,
        one_of=one_of,
        patience=patience or inf,
        state=state_folders(config.worker.state),
        tidy=True,
        heartbeat=None if config.worker.heartbeat is None else user_path(config.worker.heartbeat),
        traces=config.worker.traces,
    )
    if code > SIGNALLED:
        _exit_now(code)
    return code


def _check_traces() -> None:
    """See that spans can be made.

    Raises:
        CommandError: they cannot.
    """
    try:
        open_telemetry.require()
    except open_telemetry.MissingTracing as error:
        raise CommandError(f"worker.traces: {error}") from error


def _exit_now(code: int) -> None:
    """End the process at once after a signal: threads may still wait for a server."""
    logging.shutdown()
    os._exit(code)


def _bundles(chosen: Sequence[str], certs: Path) -> dict[str, Bundle]:
    """The bundle that the process shows for each of its workers.

    Raises:
        CommandError: a bundle is missing, or it is that of another worker.
    """
    try:
        bundles = {name: load_worker_bundle(certs, name) for name in chosen}
    except BundleError as error:
        raise CommandError(str(error)) from error
    for name, bundle in bundles.items():
        if bundle.name != name:
            raise CommandError(
                f"{bundle.path} should be the bundle of {name}. Found that of {bundle.name}. "
                f"Use --name {bundle.name}, or the directory that has all bundles."
            )
    return bundles


def _names_to_use(
    args: argparse.Namespace, config: RunConfig, certs: Path | None, tokens: Mapping[str, str]
) -> tuple[str, ...]:
    """The names to work under; with --claim, those of which the server assigns a free one."""
    if args.index is not None and args.claim is None:
        raise ConfigError([Problem("--index", "is of use with --claim only", args.index)])
    if args.claim is not None:
        kind = config.honest_names if args.claim == "honest" else config.byzantine_names
        kind = kind if args.index is None else (_at(kind, args.index, args.claim),)
        return _shuffle(_with_tokens(kind, tokens) if certs is None else _with_bundles(kind, certs))
    known = config.worker_names
    only = list(tokens) if len(tokens) == 1 else None
    named = args.name or only or [_name_on_certificate(certs)]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ConfigError(
            [
                Problem("--name", "there is no such worker", name, suggestion(name, known))
                for name in unknown
            ]
        )
    return tuple(sorted(set(named)))


def _at(kind: Sequence[str], index: int, claim: str) -> str:
    """The name at a place among those of a kind, which an engine counts copies of one program by."""
    if index < len(kind):
        return kind[index]
    rule = f"should be below {len(kind)}, the number of {claim} workers in these settings"
    raise ConfigError([Problem("--index", rule, index)])


def with_newcomer(args: argparse.Namespace, config: RunConfig, certs: Path | None) -> RunConfig:
    """The settings with the worker on the certificate, which may have been admitted to the run since.

    Only where no share of samples depends on who is there; the server knows whether it was admitted.
    """
    chosen = bool(args.name) or args.claim is not None
    if certs is None or chosen or config.byzantine.count or not isinstance(config.partition, Shared):
        return config
    name = _name_on_certificate(certs)
    if name in config.worker_names:
        return config
    names = sorted({*config.worker_names, name})
    return config.model_copy(update={"workers": len(names), "names": names})


def _with_tokens(candidates: tuple[str, ...], tokens: Mapping[str, str]) -> tuple[str, ...]:
    """The workers with a token here; all of them where the secret itself is here."""
    having = tuple(name for name in candidates if name in tokens) if tokens else candidates
    if candidates and not having:
        found = f"Found tokens of {', '.join(tokens)}"
        raise CommandError(f"there should be a token of one of {', '.join(candidates)}. {found}")
    return having


def _with_bundles(candidates: tuple[str, ...], certs: Path) -> tuple[str, ...]:
    """The workers with a bundle here."""
    if (certs / CERTIFICATE).is_file():
        held = tuple(name for name in candidates if name == _name_on_certificate(certs))
    else:
        held = tuple(name for name in candidates if (certs / name / CERTIFICATE).is_file())
    if candidates and not held:
        raise CommandError(f"{certs} should have the bundle of one of {', '.join(candidates)}. Found none.")
    return held


def _name_on_certificate(certs: Path | None) -> str:
    """The name on the only certificate."""
    if certs is None or not (certs / CERTIFICATE).is_file():
        hint = "Add --name w00, --claim honest, or --certs with the bundle of one worker, or its token."
        raise ConfigError([Problem("--name", "is needed to know which worker this is", hint=hint)])
    try:
        return Bundle.load(certs, Role.WORKER).name
    except BundleError as error:
        raise CommandError(str(error)) from error


def _shuffle(candidates: tuple[str, ...]) -> tuple[str, ...]:
    """A random order, so that processes that start together rarely claim the same name."""
    if not candidates:
        raise ConfigError([Problem("byzantine.count", "should be at least 1 to claim a Byzantine name", 0)])
    return tuple(random.sample(candidates, len(candidates)))


def needs_classes(config: RunConfig) -> bool:
    """Whether the number of classes follows from labels, of which this machine may have only some."""
    return config.loss.by_class is not False and getattr(config.data, "classes", 0) is None


def ask_for_classes(server: str, bundle: Bundle | None, patience: float) -> int | None:
    """Ask the server for the number of classes of its data, until it answers; None where it has none.

    Raises:
        CommandError: it did not answer in `patience` seconds, or waiting would not help.
    """
    began, reminded = time.monotonic(), -REMINDER
    while True:
        try:
            return int(status(server, STATUS_INTERVAL, bundle).classes) or None
        except grpc.RpcError as error:
            found = diagnose_call(error, server, bundle)
            waited = time.monotonic() - began
            if found.final:
                raise CommandError(found.sentence) from None
            if waited > patience:
                said = f"the server {server} did not answer in {patience:g} s. {found.sentence}"
                raise CommandError(said) from None
            if waited - reminded >= REMINDER:
                log.warning(
                    "waiting for the server %s. %s", server, found.sentence, extra=event("server_awaited")
                )
                reminded = waited
        # Workers that start together should not all ask together.
        time.sleep(STATUS_INTERVAL * random.uniform(0.5, 1.0))

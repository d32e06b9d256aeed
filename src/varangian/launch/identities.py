"""Identities of a run on this machine: secrets and certificates, made for it and removed after it."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from varangian.config import RunConfig
from varangian.launch.output.temporary_folder import temporary_folder
from varangian.launch.result import RunError
from varangian.pki.authority import SERVER, Authority
from varangian.pki.x509 import MissingExtra
from varangian.protos.identity.bundle import Role
from varangian.protos.network.address import EVERYWHERE, is_loopback
from varangian.protos.network.listen import any_address
from varangian.registry import ConfigError, Problem
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.worker.transport.tls import Proof, load_worker_bundle

DAYS = 365.0
"""Longer than any run; the keys are gone with it."""


@dataclass(frozen=True)
class Identities:
    """The sessions that the server checks, and the proof of each worker."""

    sessions: Sessions
    proofs: Mapping[str, Proof]
    security: Security | None
    """None is without TLS."""


def with_identity(config: RunConfig, tls: bool, certs: str) -> RunConfig:
    """Record whether TLS is used, and draw a seed for the server's own choices that no worker knows.

    The run folder has both, so that the run can be repeated from it once it is over.

    Args:
        config: of a server whose workers are elsewhere.
        tls: whether it has certificates.
        certs: how they are given, as a part of a sentence.

    Raises:
        ConfigError: the settings ask for TLS, or for enrolment, and there are no certificates.
    """
    if config.server.tls and not tls:
        rule = f"needs {certs} here; only `varangian run` makes certificates"
        raise ConfigError([Problem("server.tls", rule, True)])
    if config.server.enrol_port is not None and not tls:
        rule = f"needs {certs}: without certificates there are none to ask for"
        raise ConfigError([Problem("server.enrol_port", rule, config.server.enrol_port)])
    seed = secrets.randbits(63) if config.server.seed is None else config.server.seed
    server = config.server.model_copy(update={"seed": seed, "tls": tls})
    return config.model_copy(update={"server": server})


@contextmanager
def make_identities(config: RunConfig) -> Generator[Identities]:
    """Make the identities of all workers of a run.

    Raises:
        RunError: certificates are needed and cannot be made.
    """
    workers = config.worker_names
    if not uses_tls(config):
        sessions = Sessions(workers, secrets.token_bytes(32), absent_after=config.server.absent_after)
        yield Identities(sessions, {name: sessions.token(name) for name in workers}, None)
        return
    with TemporaryDirectory(dir=temporary_folder()) as path:
        security = _security(Path(path), config.server.host, workers)
        sessions = Sessions(
            workers,
            None,
            certificate_reader=security.certificate_reader,
            absent_after=config.server.absent_after,
        )
        proofs = {name: load_worker_bundle(Path(path), name) for name in workers}
        yield Identities(sessions, proofs, security)


def uses_tls(config: RunConfig) -> bool:
    """Whether the run uses TLS: as it says, or else when others could listen."""
    return not is_loopback(config.server.host) if config.server.tls is None else config.server.tls


def _security(path: Path, host: str, workers: tuple[str, ...]) -> Security:
    try:
        authority = Authority.create(path, DAYS)
    except MissingExtra as error:
        raise RunError(
            f"{error}. Or set server.tls=false, if you trust everyone on that network"
        ) from error
    authority.issue(SERVER, Role.SERVER, hosts=(any_address() if host == EVERYWHERE else host,), days=DAYS)
    for name in workers:
        authority.issue(name, Role.WORKER, days=DAYS)
    return Security(path)

"""The choice between certificates and a shared secret, from the command line or the environment."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from varangian.protos.network.address import AddressError, is_loopback, parse_address
from varangian.registry import ConfigError, Problem
from varangian.structured_logs import event

CERTS, INSECURE = "VARANGIAN_CERTS", "VARANGIAN_INSECURE"
OFF = ("", "0", "false", "no")
CLEAR_TEXT = (
    "without TLS tokens and digests protect against accidents only: whoever is on the way can read a "
    "token, speak for its worker, and change vectors, models and answers unnoticed"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecurityChoice:
    """The security chosen on the command line, or else in the environment."""

    certs: Path | None
    """The folder of the bundle, or of several; None is without TLS."""
    insecure: bool
    """Whether a network may be used without TLS."""


def read_choice(args: argparse.Namespace) -> SecurityChoice:
    """The command line counts before the environment, and there no TLS counts before TLS."""
    insecure = bool(getattr(args, "insecure", False))
    if args.certs is not None or insecure:
        return SecurityChoice(None if args.certs is None else Path(args.certs), insecure)
    if os.environ.get(INSECURE, "").lower() not in OFF:
        return SecurityChoice(None, insecure=True)
    certs = os.environ.get(CERTS)
    return SecurityChoice(Path(certs) if certs else None, insecure=False)


def check(chosen: SecurityChoice, host: str) -> None:
    """Refuse a network without TLS unless asked for: anybody who reads the traffic can be any worker.

    Raises:
        ConfigError: it was not.
    """
    if chosen.certs is None and not chosen.insecure and not is_loopback(host):
        rule = "is needed beyond this machine: without TLS anybody who sees the traffic can be any worker"
        hint = "`varangian certs` makes them; or add --insecure, if you trust everyone on that network."
        raise ConfigError([Problem("--certs", rule, host, hint)])


def check_address(chosen: SecurityChoice, address: str) -> None:
    """The same for a server elsewhere.

    Raises:
        ConfigError: it is no address, or TLS is missing and `--insecure` is not set.
    """
    try:
        host, _ = parse_address(address)
    except AddressError as error:
        raise ConfigError([Problem("--server", error.rule, error.found, error.hint)]) from None
    check(chosen, host)


def warn(chosen: SecurityChoice, host: str) -> None:
    """Say in the log what a network without TLS does not protect against, where one is used."""
    if chosen.certs is None and not is_loopback(host):
        log.warning("security: %s", CLEAR_TEXT, extra=event("no_tls"))

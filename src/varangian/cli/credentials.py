"""The choice between certificates and a shared secret, in the words of the command line."""

from __future__ import annotations

import argparse

from varangian.protos.identity.credentials import SecurityChoice, check_tls, choose
from varangian.protos.network.address import AddressError, parse_address
from varangian.registry import ConfigError, Problem


def read_choice(args: argparse.Namespace) -> SecurityChoice:
    """What is typed, or else in the environment."""
    return choose(args.certs, bool(getattr(args, "insecure", False)))


def check(chosen: SecurityChoice, host: str) -> None:
    """Refuse a network without TLS unless asked for.

    Raises:
        ConfigError: it was not.
    """
    check_tls(chosen, host, "--certs", "add --insecure")


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

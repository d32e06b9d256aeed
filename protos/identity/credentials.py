"""Credentials from arguments and the environment: certificates or tokens, and whether a network needs them.

The command line and the Python client read them here, and each words its own error about what it found.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from varangian.files import user_path
from varangian.protos.identity.bundle import NAME
from varangian.protos.network.address import is_loopback
from varangian.registry import ConfigError, Problem
from varangian.structured_logs import event

CERTS, INSECURE, TOKEN = "VARANGIAN_CERTS", "VARANGIAN_INSECURE", "VARANGIAN_TOKEN"
"""Variables of the environment."""
FILE = "_FILE"
"""After the name of a variable: the variable names a file with the value."""
OFF = ("", "0", "false", "no")
LARGEST = 1 << 20
"""Bytes that are read of a file of secrets or tokens at most."""
LINE = re.compile(rf"(?:({NAME.pattern}):)?([0-9a-f]{{64}})")
"""A token as it is printed and read: the name of the worker, then the HMAC; the name may be missing."""
TLS_RULE = "is needed beyond this machine: without TLS anybody who sees the traffic can be any worker"
CLEAR_TEXT = (
    "without TLS tokens and digests protect against accidents only: whoever is on the way can read a "
    "token, speak for its worker, and change vectors, models and answers unnoticed"
)

log = logging.getLogger(__name__)


class CredentialsError(ValueError):
    """A variable or a token that cannot be used, as a sentence without its full stop."""


@dataclass(frozen=True)
class SecurityChoice:
    """The security chosen by arguments, or else in the environment."""

    certs: Path | None
    """The folder of the bundle, or of several; None is without TLS."""
    insecure: bool
    """Whether a network may be used without TLS."""


def choose(
    certs: str | os.PathLike[str] | None,
    insecure: bool,
    environment: Mapping[str, str] | None = None,
) -> SecurityChoice:
    """Arguments count before the environment, and there no TLS counts before TLS.

    Args:
        certs: the folder that was asked for.
        insecure: whether a network without TLS was asked for.
        environment: by default that of this process.
    """
    variables = os.environ if environment is None else environment
    if certs is not None or insecure:
        return SecurityChoice(None if certs is None else user_path(certs), insecure)
    if variables.get(INSECURE, "").lower() not in OFF:
        return SecurityChoice(None, insecure=True)
    found = variables.get(CERTS)
    return SecurityChoice(user_path(found) if found else None, insecure=False)


def lacking_tls(chosen: SecurityChoice, host: str, allow: str) -> Problem | None:
    """What is wrong with a network without TLS that nobody has asked for; None where nothing is.

    Args:
        chosen: what is to be used.
        host: of the server.
        allow: how a user asks for it, as a part of a sentence.
    """
    if chosen.certs is not None or chosen.insecure or is_loopback(host):
        return None
    hint = f"`varangian certs` makes them; or {allow}, if you trust everyone on that network."
    return Problem("certs", TLS_RULE, host, hint)


def check_tls(chosen: SecurityChoice, host: str, path: str, allow: str) -> None:
    """Refuse such a network: anybody who reads the traffic can be any worker.

    Args:
        chosen: what is to be used.
        host: of the server.
        path: what certificates are given with.
        allow: as for `lacking_tls`.

    Raises:
        ConfigError: it was not asked for.
    """
    if problem := lacking_tls(chosen, host, allow):
        raise ConfigError([Problem(path, problem.rule, problem.value, problem.hint)])


def warn_without_tls(chosen: SecurityChoice, host: str) -> None:
    """Say in the log what a network without TLS does not protect against, where one is used."""
    if chosen.certs is None and not is_loopback(host):
        log.warning("security: %s", CLEAR_TEXT, extra=event("no_tls"))


def value_of(name: str, environment: Mapping[str, str] | None = None) -> tuple[str, bytes | None]:
    """Where a value is from, a variable or the file that a second variable names, and the value.

    Raises:
        CredentialsError: there are both, or the file cannot be read.
    """
    variables = os.environ if environment is None else environment
    value, path = variables.get(name), variables.get(name + FILE)
    if value and path:
        raise CredentialsError(f"{name} and {name}{FILE} should not be set both. Leave one of them out")
    if not path:
        return name, None if value is None else value.encode("utf-8", "surrogateescape")
    return f"{path}, which {name}{FILE} names,", read_small(user_path(path), f" {name}{FILE} names it.")


def read_small(path: Path, why: str = "") -> bytes:
    """The begin of a file of a secret or of tokens, without spaces around it.

    Raises:
        CredentialsError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(LARGEST).strip()
    except OSError as error:
        raise CredentialsError(
            f"{path} should be readable.{why} The system says: {error.strerror}"
        ) from None


def tokens_in(text: bytes | str, where: str, named: bool = True) -> dict[str | None, str]:
    """Tokens by the name of their worker, None where it is not said.

    Args:
        text: with any number of them.
        where: it is from.
        named: whether each needs its name.

    Raises:
        CredentialsError: the text is something else, which is not shown.
    """
    found: dict[str | None, str] = {}
    words = text if isinstance(text, str) else text.decode("ascii", "replace")
    for word in words.split():
        token = LINE.fullmatch(word)
        if token is None or (named and token[1] is None) or found.get(token[1], token[2]) != token[2]:
            wrong = "something else"
            if token is not None:
                wrong = "one without a name" if token[1] is None else f"two of {token[1]}"
            raise CredentialsError(
                f"{where} should hold tokens as `varangian token` prints them, NAME:DIGITS, one for each "
                f"name. Found {wrong}"
            )
        found[token[1]] = token[2]
    if not found:
        raise CredentialsError(
            f"{where} should hold a token, made by `varangian token`. Found nothing in it"
        )
    return found

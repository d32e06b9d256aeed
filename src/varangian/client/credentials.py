"""Credentials of a worker: its bundle, or the token that proves its name where there is no TLS."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from varangian.files import user_path
from varangian.protos.identity.bundle import CERTIFICATE, NAME, Bundle, BundleError, Role
from varangian.protos.network.address import AddressError, is_loopback, parse_address
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.tls import Proof, load_worker_bundle

CERTS, INSECURE, TOKEN = "VARANGIAN_CERTS", "VARANGIAN_INSECURE", "VARANGIAN_TOKEN"
"""Variables of the environment, as `varangian worker` reads them."""
FILE = "_FILE"
OFF = ("", "0", "false", "no")
DIGITS = re.compile("[0-9a-f]{64}")
LINE = re.compile(rf"(?:({NAME.pattern}):)?({DIGITS.pattern})")
"""A token, with the name of the worker before it or without."""
LARGEST = 1 << 20
"""Bytes that are read of a file of tokens at most."""


def credentials(
    server: str,
    certs: str | os.PathLike[str] | None,
    name: str | None,
    token: str | None,
    insecure: bool,
    environment: Mapping[str, str] = os.environ,
) -> tuple[str, Proof]:
    """The name of the worker and what proves it.

    Args:
        server: `host:port`.
        certs: the bundle of the worker, or a folder of bundles.
        name: of the worker; needed where `certs` or the token does not say it.
        token: as `varangian token` prints it, or its digits alone.
        insecure: whether a token may be shown beyond this machine, where anybody on the way can read it.
        environment: the variables that are read where there is neither `certs` nor `token`.

    Raises:
        ClientError: there are none, or they cannot be used.
    """
    if not isinstance(server, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ClientError(f"`server` should be a text, HOST:PORT. Found {server!r}.")
    try:
        host, _ = parse_address(server)
    except AddressError as error:
        raise ClientError(f"`server` {error}") from None
    if certs is not None and token is not None:
        raise ClientError("`certs` and `token` should not be given both: leave one of them out.")
    insecure = insecure or environment.get(INSECURE, "").lower() not in OFF
    if certs is None and token is None and not insecure:
        certs = environment.get(CERTS) or None
    if certs is not None:
        return of_bundle(user_path(certs), name)
    found = tokens(token if token is not None else token_text(environment))
    chosen = of_token(found, name, server)
    if not insecure and not is_loopback(host):
        raise ClientError(
            f"`certs` is needed for a server on another machine. Found none for {server}: without TLS "
            "anybody who sees the traffic can be any worker. `varangian certs` makes them; or pass "
            "insecure=True, if you trust everyone on that network."
        )
    return chosen


def of_bundle(certs: Path, name: str | None) -> tuple[str, Proof]:
    """The name and the bundle of a worker.

    Raises:
        ClientError: it cannot be used, or is that of another worker.
    """
    if name is None and certs.is_dir() and not (certs / CERTIFICATE).is_file():
        held = sorted(path.parent.name for path in certs.glob(f"*/{CERTIFICATE}"))
        if held:
            raise ClientError(
                f"`name` should say which bundle in {certs} to use. Found {', '.join(held[:8])}."
            )
    try:
        bundle = Bundle.load(certs, Role.WORKER) if name is None else load_worker_bundle(certs, name)
    except (BundleError, OSError) as error:
        raise ClientError(f"`certs` cannot be used. {error}") from None
    if name not in (None, bundle.name):
        raise ClientError(f"{bundle.path} should be the bundle of {name}. Found that of {bundle.name}.")
    return bundle.name, bundle


def token_text(environment: Mapping[str, str]) -> str:
    """The tokens in the environment; empty where there are none.

    Raises:
        ClientError: the file that it names cannot be read.
    """
    path = environment.get(TOKEN + FILE)
    if not path:
        return environment.get(TOKEN, "")
    try:
        with user_path(path).open("rb") as stream:
            return stream.read(LARGEST).decode("ascii", "replace")
    except OSError as error:
        raise ClientError(
            f"{path} should be readable: {TOKEN}{FILE} names it. The system says: {error.strerror}."
        ) from None


def tokens(text: str) -> dict[str | None, str]:
    """Tokens by the name of their worker, None where it is not said.

    Raises:
        ClientError: the text is something else.
    """
    found: dict[str | None, str] = {}
    for word in text.split():
        line = LINE.fullmatch(word)
        if line is None:
            raise ClientError(
                "`token` should be as `varangian token` prints it, NAME:DIGITS. Found something else."
            )
        found[line[1]] = line[2]
    return found


def of_token(found: Mapping[str | None, str], name: str | None, server: str) -> tuple[str, str]:
    """The name and the token of a worker.

    Raises:
        ClientError: it is not there.
    """
    if not found:
        raise ClientError(
            f"`certs` or `token` should prove to {server} which worker this is. Found neither, nor "
            f"{CERTS} or {TOKEN} in the environment. `varangian certs` or `varangian token` makes them."
        )
    names = [one for one in found if one is not None]
    if name is None:
        if len(names) != 1 or len(found) != 1:
            said = ", ".join(names) or "a token without a name"
            raise ClientError(f"`name` should say which worker this is. Found {said}.")
        name = names[0]
    proof = found.get(name) or (found.get(None) if len(found) == 1 else None)
    if proof is None:
        raise ClientError(f"`token` should be that of {name}. Found that of {', '.join(names)}.")
    return name, proof

"""Credentials of a worker: its bundle, or the token that proves its name where there is no TLS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from varangian.protos.identity.bundle import CERTIFICATE, Bundle, BundleError, Role
from varangian.protos.identity.credentials import (
    CERTS,
    TOKEN,
    CredentialsError,
    choose,
    lacking_tls,
    tokens_in,
    value_of,
)
from varangian.protos.network.address import AddressError, parse_address
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.tls import Proof, load_worker_bundle


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
    check_text("server", server, "HOST:PORT")
    if name is not None:
        check_text("name", name, "that of the worker")
    if token is not None:
        check_text("token", token, "NAME:DIGITS", shown=False)
    if not isinstance(insecure, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ClientError(f"`insecure` should be True or False. Found {insecure!r}.")
    certs = None if certs is None else path_of("certs", certs)
    try:
        host, _ = parse_address(server)
    except AddressError as error:
        raise ClientError(f"`server` {error}") from None
    if certs is not None and token is not None:
        raise ClientError("`certs` and `token` should not be given both: leave one of them out.")
    chosen = choose(certs, insecure, environment)
    if certs is None and token is not None:
        chosen = replace(chosen, certs=None)
    if chosen.certs is not None:
        return of_bundle(chosen.certs, name)
    found = of_token(tokens(token, environment), name, server)
    if problem := lacking_tls(chosen, host, "pass insecure=True"):
        raise ClientError(f"`certs` {problem.rule}. Found none for {server}. {problem.hint}")
    return found


def check_text(argument: str, value: object, what: str, shown: bool = True) -> None:
    """See that an argument is a text.

    Args:
        argument: its name.
        value: of the argument.
        what: it should be.
        shown: whether others may see it.

    Raises:
        ClientError: it is none.
    """
    if not isinstance(value, str):
        found = repr(value) if shown else type(value).__name__
        raise ClientError(f"`{argument}` should be a text, {what}. Found {found}.")


def path_of(argument: str, value: object) -> str:
    """A path that is an argument.

    Raises:
        ClientError: it is none.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise ClientError(f"`{argument}` should be a path. Found {value!r}.")
    return path


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


def tokens(given: str | None, environment: Mapping[str, str]) -> dict[str | None, str]:
    """Tokens by the name of their worker, None where it is not said; none where there are none.

    Raises:
        ClientError: the argument or the variable is something else.
    """
    try:
        where, text = ("`token`", given) if given is not None else value_of(TOKEN, environment)
        return tokens_in(text, where, named=False) if text else {}
    except CredentialsError as error:
        raise ClientError(f"{error}.") from None


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

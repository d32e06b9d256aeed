"""Tokens, which prove a worker's name where there is no TLS, and the secret that they are made with.

The secret stays with the server. A token is HMAC-SHA256 of one name under the secret, so whoever holds it
can be that worker and no other. It is valid for every run of a server with that secret: a server that is
started again draws another run id, and its workers go on with the tokens that they have.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from varangian.cli.main import CommandError
from varangian.files import write_atomically
from varangian.pki.authority import PRIVATE
from varangian.protos.identity.credentials import (
    FILE,
    TOKEN,
    CredentialsError,
    read_small,
    tokens_in,
    value_of,
)
from varangian.protos.network.address import is_loopback, parse_address
from varangian.server.identity.sessions import SECRET_BYTES, make_token

SECRET = "VARANGIAN_SECRET"
PUBLISHED = frozenset({b"change-this-secret"})
"""Secrets of examples, which are public."""
MAKE = "Make one: varangian token --secret FILE NAME... writes a new one to FILE"


def secret() -> bytes:
    """The secret that the server makes tokens with, from the environment: every user sees arguments.

    Raises:
        CommandError: it is missing, too short, or known to everybody.
    """
    where, key = _value(SECRET)
    if key is None:
        raise CommandError(
            f"the environment variable {SECRET}, or the file that {SECRET}{FILE} names, should hold the "
            f"server's secret, at least {SECRET_BYTES} bytes. Neither is set. {MAKE}"
        )
    return _check(key, where)


def proofs(names: Sequence[str], server: str, tokens: Mapping[str, str]) -> dict[str, str]:
    """The token that each of these workers shows to `host:port`.

    Args:
        names: of the workers.
        server: the address they are shown to. On this machine the server's secret will do, too.
        tokens: as `tokens_of_environment` returns them.

    Raises:
        CommandError: one has none, or the secret of all is about to be used on another machine.
    """
    if tokens:
        lacking = [name for name in names if name not in tokens]
        if lacking:
            raise CommandError(
                f"{TOKEN} or {TOKEN}{FILE} should hold a token of {_some(lacking, ', ')}. Found one of "
                f"{_some(list(tokens), ', ')}. Make it at the server: varangian token {_some(lacking)}"
            )
        return {name: tokens[name] for name in names}
    if not {SECRET, SECRET + FILE} & os.environ.keys():
        raise CommandError(
            f"the environment variable {TOKEN}, or the file that {TOKEN}{FILE} names, should hold the "
            f"token of {_some(names, ', ')}. Neither is set. "
            f"Make it at the server: varangian token {_some(names)}"
        )
    if not is_loopback(parse_address(server)[0]):
        raise CommandError(
            f"{SECRET} should be at the server alone: whoever has it can be every worker. Found it at a "
            f"worker of {server}. Make a token at the server, varangian token {_some(names)}, and give "
            f"that to this worker in {TOKEN} or {TOKEN}{FILE}"
        )
    key = secret()
    return {name: make_token(name, key) for name in names}


def tokens_of_environment() -> dict[str, str]:
    """Tokens by the name of their worker, from the environment; empty where none is set.

    Raises:
        CommandError: the variable holds something else.
    """
    where, text = _value(TOKEN)
    if text is None:
        return {}
    try:
        return {name: token for name, token in tokens_in(text, where).items() if name is not None}
    except CredentialsError as error:
        raise CommandError(str(error)) from None


def _value(name: str) -> tuple[str, bytes | None]:
    try:
        return value_of(name)
    except CredentialsError as error:
        raise CommandError(str(error)) from None


def _check(key: bytes, where: str) -> bytes:
    if key in PUBLISHED:
        raise CommandError(
            f"{where} should hold a secret of your own. Found the one of an example, which everybody "
            f"knows. {MAKE}"
        )
    if len(key) < SECRET_BYTES:
        raise CommandError(
            f"{where} should hold the server's secret, at least {SECRET_BYTES} bytes. Found {len(key)}. "
            f"{MAKE}"
        )
    return key


def read_or_make_secret(path: Path) -> bytes:
    """The secret in a file; a new one where there is no such file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    except FileExistsError:
        try:
            return _check(read_small(path), str(path))
        except CredentialsError as error:
            raise CommandError(str(error)) from None
    key = secrets.token_hex(32).encode()
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(key + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    print(f"made a new secret in {path}; it stays at the server", file=sys.stderr)
    return key


def write_tokens(names: Sequence[str], key: bytes, path: Path) -> None:
    """Write the tokens of these workers to a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, token_lines(names, key).encode(), PRIVATE)
    many = "the token" if len(names) == 1 else f"{len(names)} tokens"
    print(f"wrote {many} to {path}")


def token_lines(names: Sequence[str], key: bytes) -> str:
    return "".join(f"{name}:{make_token(name, key)}\n" for name in names)


def _some(names: Sequence[str], between: str = " ") -> str:
    """The first few of many names."""
    return between.join(names[:4]) + (f"{between}..." if len(names) > 4 else "")
